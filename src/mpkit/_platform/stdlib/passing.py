"""What travels to a child while it is started, and nowhere else: descriptors; and how multiprocessing
pickles.

Private are ``reduction.DupFd``, ``process._inheriting``, and ``ForkingPickler._extra_reducers``: the public
`dumps` of that class makes a new pickler with two copies of a dictionary for each object, and cannot pickle
out of band.
"""

from __future__ import annotations

import contextlib
import multiprocessing.context as mp_context
import sys
from collections.abc import Callable, Generator, Mapping
from multiprocessing import process, reduction
from typing import Any, Protocol

__all__ = ["PassedDescriptor", "extra_reducers", "inheriting", "pass_descriptor", "spawning"]


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


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """How multiprocessing pickles what `pickle` cannot (connections, sockets, ...): by type, a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
