"""The lock between the threads of one process in a robust lock: not recursive, and it knows its owner."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from mpkit._platform.threads.scheduling import FREE_THREADED
from mpkit._shm.memory.semaphore import Semaphore


class ThreadLock:
    """A lock between threads, for which acquiring, releasing and asking for the owner are single calls of C.

    So Ctrl-C comes before or after each of them, and the answer of `is_mine` is always right.

    Attributes:
        acquire: ``acquire(block=True, timeout=None) -> bool``; fails at once for the thread that has it.
        release: gives it back; only the thread that has it may call this.
        is_mine: whether the calling thread has it.

    Raises:
        SharedMemoryExhausted: the system has no room for a semaphore.
    """

    __slots__ = ("acquire", "is_mine", "release")

    def __init__(self) -> None:
        self.acquire: Callable[..., bool]
        self.release: Callable[[], None]
        self.is_mine: Callable[[], bool]
        if FREE_THREADED:
            # Without a global interpreter lock, `_is_mine` of a semaphore is sometimes wrong: acquiring
            # records first that it is taken, and then by which thread, and `_is_mine` may look in between.
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
