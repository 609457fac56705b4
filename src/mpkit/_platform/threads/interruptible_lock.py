"""A lock between threads that an interrupt cannot leave locked: the one that mpkit uses inside a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import compress, starmap
from typing import Any, ParamSpec, TypeVar

__all__ = ["InterruptibleLock", "is_free"]

P = ParamSpec("P")
R = TypeVar("R")


def is_free(lock: Any) -> bool:  # noqa: ANN401  whatever has `acquire` and `release`
    """Whether this thread could take a lock at once, one that it has already included if that is an RLock.

    It is taken and given back in one call of C code: no handler of a signal can raise in between, and leave
    it locked.
    """
    return bool(list(starmap(lock.release, compress([()], map(lock.acquire, (False,))))))


class InterruptibleLock:
    """A lock between threads that an interrupt cannot leave locked.

    ``with lock:`` can, in the main thread: from Python 3.14 on a signal handler may run between the taking
    and the block that would give it back (python/cpython#148874). So where Ctrl-C may come there is `run`;
    and where each call counts, its body in line::

        try:
            try:
                lock.acquire()
                ...
                lock.release()
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
            # Should an interrupt have come in the middle of the first one; or just before it, after an error
            # of what was done (on Python 3.10, which looks for signals where an `except` begins).
            lock.unwind()
            raise

    Args:
        of: the condition whose lock it shall be; None: a lock of its own.

    Attributes:
        acquire: ``acquire(blocking=True, timeout=-1) -> bool``, the C method itself.
        release: gives it back.
        is_owned: whether this thread has it.
        raw: the lock itself, for a `threading.Condition`.
    """

    __slots__ = ("acquire", "is_owned", "raw", "release")

    def __init__(self, of: threading.Condition | None = None) -> None:
        # The one lock of the standard library that knows its owner; `threading.Condition` asks it by the same
        # name, and has that name itself.
        lock: Any = of or threading.RLock()
        self.raw: threading.RLock = lock
        self.is_owned: Callable[[], bool] = lock._is_owned
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function(*args, **kwargs)`` while holding the lock, which this thread may have already."""
        if self.is_owned():
            # In the middle of something (a `__del__`, say): that gives it back, whatever is raised here.
            return function(*args, **kwargs)
        try:
            try:
                self.acquire()
                result = function(*args, **kwargs)
                self.release()
            except BaseException:
                self.unwind()
                raise
        except BaseException:
            self.unwind()
            raise
        return result

    def run_within(
        self, seconds: float | None, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs
    ) -> tuple[R] | None:
        """`run`, unless the lock cannot be had within `seconds` (None: as long as it takes): then None.

        What the function returns comes in a tuple, which tells it from that.
        """
        if self.is_owned():
            return (function(*args, **kwargs),)
        try:
            try:
                if not self.acquire(timeout=-1 if seconds is None else min(seconds, threading.TIMEOUT_MAX)):
                    return None
                result = function(*args, **kwargs)
                self.release()
            except BaseException:
                self.unwind()
                raise
        except BaseException:
            self.unwind()
            raise
        return (result,)

    def unwind(self) -> None:
        """Give it back if this thread has it."""
        if self.is_owned():
            self.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_exc_info: object) -> None:
        self.release()
