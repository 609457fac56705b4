"""What a process gets while it is started: descriptors, for a child of multiprocessing or for a program of
ours.

Private are ``reduction.DupFd``, ``process._inheriting``, ``util.spawnv_passfds`` and
``spawn.get_executable``; and

- ``ForkingPickler._extra_reducers``: the public `dumps` of that class makes a new pickler with two copies of
  a dictionary for each object, and cannot pickle out of band;
- ``_socket.socket`` and ``socketpair``: libraries of greenlets put a class of their own in the place of
  `socket.socket`, in the whole process, whose calls wait although they were told not to.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context as mp_context
import os
import sys
from _socket import socket as PlainSocket  # noqa: N812
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing import process, reduction, spawn, util
from typing import Any, Protocol

if sys.platform != "win32":
    from _socket import socketpair as plain_socketpair

__all__ = [
    "PassedDescriptor",
    "PlainSocket",
    "extra_reducers",
    "inheriting",
    "pass_descriptor",
    "plain_socketpair",
    "python_executable",
    "spawn_passing",
    "spawning",
]


def spawning() -> bool:
    """Whether this thread is just starting a child by spawn or forkserver, and pickling what it gets."""
    return mp_context.get_spawning_popen() is not None


@contextlib.contextmanager
def inheriting() -> Generator[None]:
    """In a child: what is unpickled in this block was pickled while the child was started.

    Managers' proxies want to know it, and so does the check that importing the main module starts no process.
    """
    me: Any = process.current_process()
    me._inheriting = True
    try:
        yield
    finally:
        del me._inheriting


class PassedDescriptor(Protocol):
    """A file descriptor on its way to a child that is being started."""

    def detach(self) -> int:
        """In the child: the descriptor, from now on the caller's to close."""
        ...


def pass_descriptor(descriptor: int) -> PassedDescriptor:
    """Something to pickle while a child is being started by spawn or forkserver (POSIX).

    Raises:
        RuntimeError: If this thread is not starting a child: to a stranger a descriptor means nothing.
    """
    if sys.platform == "win32" or not spawning():
        raise RuntimeError(
            "a file descriptor can be sent to another process only while a child is being started"
        )
    passed: PassedDescriptor = reduction.DupFd(descriptor)
    return passed


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


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """How multiprocessing pickles what `pickle` cannot (connections, sockets, ...): by type, a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
