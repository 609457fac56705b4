"""The lock between the threads of one process in a robust lock: not recursive, and it knows its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mpkit._platform.threads.scheduling import FREE_THREADED
from mpkit._shm.memory.semaphore import Semaphore

__all__ = ["ThreadLock"]


class ThreadLock:
    """A lock between threads; taking, giving back and asking for the owner are single calls of C.

    So Ctrl-C comes before or after each of them, and what `is_mine` says is always true.

    Attributes:
        acquire: ``acquire(block=True, timeout=None) -> bool``; False at once for the thread that has it.
        release: gives it back; only by the thread that has it.
        is_mine: whether this thread has it.

    Raises:
        SharedMemoryExhausted: the system has no room for a semaphore.
    """

    __slots__ = ("acquire", "is_mine", "release")

    def __init__(self) -> None:
        self.acquire: Callable[..., bool]
        self.release: Callable[[], None]
        self.is_mine: Callable[[], bool]
        if FREE_THREADED:
            # There a semaphore's own answer is wrong now and then: taking it notes that it is taken first and
            # by whom then, and `_is_mine` looks without waiting for that.
            lock: Any = threading.RLock()
            self.release, self.is_mine = lock.release, lock._is_owned
            self.acquire = _not_recursive(lock.acquire, self.is_mine)
        else:
            # Cheaper than any lock of `threading`.
            semaphore = Semaphore.private()
            self.acquire, self.release = semaphore.acquire, semaphore.release
            self.is_mine = semaphore.raw._is_mine


def _not_recursive(take: Callable[..., bool], is_mine: Callable[[], bool]) -> Callable[..., bool]:
    def acquire(block: bool = True, timeout: float | None = None) -> bool:
        if is_mine():
            return False
        return take(block, -1 if timeout is None else timeout)

    return acquire
