"""Imitations of other processes: instead of starting any, tests write their rows into shared memory."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import pytest

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.locks.robust_lock import COMPLETED, INSIDE
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.memory.rows import FIRST_LOCK, LOCK_WORDS
from mpkit._shm.memory.semaphore import Semaphore
from tests.helpers.waiting import PATIENCE

T = TypeVar("T")


def living_stranger() -> ProcessIdentity:
    """A living process other than this one: the parent of the tests."""
    stranger = identity.of(os.getppid())
    if stranger is None:
        pytest.skip("no other process can be seen")
    return stranger


def dead_process() -> ProcessIdentity:
    """A process that has ended: its pid has been given to another one (this one) since."""
    me = identity.current()
    return ProcessIdentity(me.pid, me.started - 1)


def permits(semaphore: Semaphore) -> int:
    """How many permits the semaphore has now."""
    if sys.platform == "darwin":
        pytest.skip("macOS does not tell how many permits there are")
    value: int = semaphore.raw._get_value()  # type: ignore[attr-defined]
    return value


class Holder:
    """Imitates another process that was stopped or killed while it holds the lock number `number`."""

    def __init__(self, shared: SharedObject, number: int, process: ProcessIdentity) -> None:
        self._permit = Semaphore.attach(shared.semaphores[number].name, 1)
        self._words = shared.words
        with shared.rows.exclusive(None):
            self.row = shared.rows._free_row()
            self._words[self.row + 1] = process.started
            self._words[self.row] = process.pid
        self._words[self.row + FIRST_LOCK + LOCK_WORDS * number] = INSIDE
        self._number = number
        assert self._permit.acquire(False)

    def release(self) -> None:
        """Release the lock, as if the process had been continued."""
        self._permit.release()
        self._words[self.row + FIRST_LOCK + LOCK_WORDS * self._number] = COMPLETED

    def can_acquire(self) -> bool:
        """Whether the other process could acquire the lock now; if so, release it at once."""
        if not self._permit.acquire(True, PATIENCE):
            return False
        self._permit.release()
        return True


class Call(Generic[T]):
    """Runs a function in a thread, and keeps its outcome."""

    def __init__(self, function: Callable[[], T]) -> None:
        self._function = function
        self.error: BaseException | None = None
        self.value: T | None = None
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.value = self._function()
        except BaseException as error:
            self.error = error

    def join(self) -> None:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "it hangs"

    def running(self) -> bool:
        return self._thread.is_alive()
