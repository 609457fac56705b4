"""Passing descriptors and objects to a process while it is being started.

Private are ``reduction.DupFd``, ``process._inheriting``, ``util.spawnv_passfds`` and
``spawn.get_executable``, for which there is nothing public; and

- ``ForkingPickler._extra_reducers``: the public `dumps` of that class creates a new pickler with two copies
  of a dictionary for each object, and cannot keep buffers out of band;
- ``_socket.socket`` and ``socketpair``: greenlet libraries replace `socket.socket`, in the whole process, by
  a class of their own whose calls block even if told not to.
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
    """Whether this thread is pickling objects for a child that it is starting by spawn or forkserver."""
    return mp_context.get_spawning_popen() is not None


@contextlib.contextmanager
def inheriting() -> Generator[None]:
    """In a child, a block in which objects are unpickled that were pickled while the child was being started.

    Proxies of managers need to know this, and the check that importing the main module starts no process.
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
        """In the child: return the descriptor, which the caller has to close."""
        ...


def pass_descriptor(descriptor: int) -> PassedDescriptor:
    """A descriptor in a form that can be pickled while a child is started by spawn or forkserver (POSIX).

    Raises:
        RuntimeError: If this thread is not starting a child: in any other process the descriptor would be
            meaningless.
    """
    if sys.platform == "win32" or not spawning():
        raise RuntimeError(
            "a file descriptor can be sent to another process only while a child is being started"
        )
    passed: PassedDescriptor = reduction.DupFd(descriptor)
    return passed


def spawn_passing(command: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a program that inherits only these descriptors and the standard streams (POSIX); return its pid.

    Unlike with `subprocess.Popen`, there is no object that must be kept and waited for.
    """
    arguments = [os.fsencode(argument) for argument in command]
    pid: int = util.spawnv_passfds(arguments[0], arguments, descriptors)
    return pid


def python_executable() -> str | None:
    """The interpreter with which multiprocessing starts children; None if Python is embedded."""
    executable: str | bytes | None = spawn.get_executable()
    return None if executable is None else os.fsdecode(executable)


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """The reducers of multiprocessing for types that `pickle` does not support, by type; a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
