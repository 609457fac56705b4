"""Starting a program of ours, and talking to it through a socket: what the guardian is started with.

Private are ``util.spawnv_passfds`` and ``spawn.get_executable``; and ``_socket.socket`` and ``socketpair``:
libraries of greenlets put a class of their own in the place of `socket.socket`, in the whole process, whose
calls wait although they were told not to.
"""

from __future__ import annotations

import os
import sys
from _socket import socket as PlainSocket  # noqa: N812
from collections.abc import Sequence
from multiprocessing import spawn, util

if sys.platform != "win32":
    from _socket import socketpair as plain_socketpair

__all__ = ["PlainSocket", "plain_socketpair", "python_executable", "spawn_passing"]


def spawn_passing(command: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a program that gets these descriptors and the standard streams, no others (POSIX); its pid.

    Unlike `subprocess.Popen` there is no object that must be kept and waited for.
    """
    arguments = [os.fsencode(argument) for argument in command]
    pid: int = util.spawnv_passfds(arguments[0], arguments, descriptors)
    return pid


def python_executable() -> str | None:
    """The interpreter that multiprocessing starts its children with; None where Python is embedded."""
    executable: str | bytes | None = spawn.get_executable()
    return None if executable is None else os.fsdecode(executable)
