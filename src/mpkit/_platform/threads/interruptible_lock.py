"""A lock between threads that an interrupt cannot leave locked; mpkit uses it inside a process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from itertools import compress, starmap
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def is_free(lock: Any) -> bool:  # noqa: ANN401  whatever has `acquire` and `release`
    """Whether the calling thread could acquire a lock at once; with an RLock it could if it has it already.

    The lock is acquired and released in a single call of C code, so that no signal handler can raise an
    exception in between, which would leave it locked.
    """
    return bool(list(starmap(lock.release, compress([()], map(lock.acquire, (False,))))))


class InterruptibleLock:
    """A lock between threads that an interrupt cannot leave locked.

    ``with lock:`` can be left locked, in the main thread: from Python 3.14 on a signal handler may run
    between acquiring the lock and the block that would release it (python/cpython#148874). So where Ctrl-C
    may come, use `run`; and where each function call counts, its body in line::

        try:
            try:
                lock.acquire()
                ...
                lock.release()
            except BaseException:
                lock.unwind()
                raise
        except BaseException:
            # Again, in case an interrupt came in the middle of the first `unwind`; or just before it, after
            # another exception (on Python 3.10, which runs signal handlers where an `except` begins).
            lock.unwind()
            raise

    Args:
        of: a condition whose lock is to be used; None: a new lock.

    Attributes:
        acquire: ``acquire(blocking=True, timeout=-1) -> bool``, the C method itself.
        release: releases it.
        is_owned: whether the calling thread has it.
        raw: the lock itself, for a `threading.Condition`.
    """

    __slots__ = ("acquire", "is_owned", "raw", "release")

    def __init__(self, of: threading.Condition | None = None) -> None:
        # RLock is the only lock of the standard library that knows its owner. `threading.Condition` has the
        # same methods.
        lock: Any = of or threading.RLock()
        self.raw: threading.RLock = lock
        self.is_owned: Callable[[], bool] = lock._is_owned
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function(*args, **kwargs)`` while holding the lock, which this thread may have already."""
        if self.is_owned():
            # This was called in the middle of another `run` (by a `__del__`, say), which releases the lock.
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
        """`run`, but wait for the lock at most `seconds` (None: no limit).

        Returns:
            A tuple that contains the result of the function; None if the lock was not acquired in time.
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
        """Release the lock if the calling thread has it."""
        if self.is_owned():
            self.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_exc_info: object) -> None:
        self.release()
