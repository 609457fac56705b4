"""The rows of a lock that this process has: which of them nobody uses, and in which it holds the lock.

A row belongs to one thread from the try to the end of it, and then to the lock for as long as it is held,
whoever releases it: two lists hand the rows on, by single calls of `append` and `pop`, which are atomic with
and without a global interpreter lock. What is done with a row is in `lock_file`, what it says in `lock_rows`.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import ClassVar

from mpkit._platform.hints import override
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.locks.lock_rows import OUT, LockRows, is_held
from mpkit._shm.locks.robust_lock import REENTERED
from mpkit._shm.locks.shared_file import MAGIC_BASE, Form
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore


class _GivenBack(list[int]):
    """In the place of the list of spare rows when the lock is closed: always empty.

    So `release` need not ask whether it is closed, and no interrupt comes between its putting a row back and
    that question.
    """

    def __init__(self, rows: LockRows) -> None:
        super().__init__()
        self._rows = rows

    def append(self, place: int) -> None:
        """Give the row back."""
        self._rows.leave(place)


class OwnRows(SharedObject):
    """The file of a lock, and the rows in it that this process has."""

    __slots__ = ("_held", "_lock_rows", "_looking", "_spare", "_taking_back")

    form: ClassVar[Form] = Form(
        "lock",
        MAGIC_BASE | 0x4C,
        rows_at=64,
        semaphores=((1, 1),),
        locks=0,
        must_stay=is_held,
    )

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        self._lock_rows = LockRows(self.rows)
        #: Places of rows of this process that nobody uses.
        self._spare: list[int] = []
        #: The place of the row in which this process holds the lock. (Before it, those of locks that others
        #: have released.)
        self._held: list[int] = []
        #: Threads that may have the file lock now.
        self._looking: set[int] = set()
        self._taking_back = InterruptibleLock()

    def _with_file_lock(self, work: Callable[[], bool]) -> bool:
        """Do what may take the file lock, so that a signal handler in this thread does not wait for it."""
        me = threading.get_ident()
        try:
            self._looking.add(me)
            return work()
        finally:
            try:
                self._looking.discard(me)
            finally:
                self._looking.discard(me)

    @override
    def _refuse_reentry(self) -> None:
        super()._refuse_reentry()
        if threading.get_ident() in self._looking:
            raise RuntimeError(REENTERED)

    def _row_for_this_thread(self, deadline: float | None) -> int:
        """The place of a row that nobody else uses; -1 when the deadline passed.

        Raises:
            ClosedError: this process has closed the lock.
            RuntimeError: this very thread is looking at the rows now (a signal handler has come in between).
        """
        while True:
            if self.closed:
                self._leave(outside=True)
            self.check_open()
            try:
                return self._spare.pop()
            except IndexError:
                self._refuse_reentry()
            if not self._take_back_released() and not self._join(deadline):
                return -1

    def _take_back_released(self) -> bool:
        """Use rows again in which this process held the lock until somebody else released it.

        A row is out while it is in the list only then, and goes into the list of spare ones here or, under
        the same lock, where a release has come upon it.
        """
        return self._taking_back.run(self._move_released)

    def _move_released(self) -> bool:
        found = False
        for place in self._held[:]:
            if self.words[place] != OUT:
                continue
            with contextlib.suppress(ValueError):  # a release has just come upon it
                self._held.remove(place)
                # Only who has taken it out may say what it is: another thread may just have released the lock
                # and taken it again in this very row.
                if self.words[place] == OUT:
                    self._spare.append(place)
                    found = True
                else:
                    self._held.append(place)
        return found

    def _put_back(self, place: int) -> None:
        self._spare.append(place)
        if self.closed:
            self._leave(outside=True)

    @override
    def _take_row(self, deadline: float | None) -> bool:
        place = self._lock_rows.join(deadline)
        if place >= 0:
            self._spare.append(place)
        return place >= 0

    @override
    def _leave(self, *, outside: bool) -> None:  # noqa: ARG002  there is no lock inside the process
        # Rows in use are given back by their threads. The one that holds the lock stays: closing does not
        # release.
        self._held.clear()
        spare = self._spare
        if not isinstance(spare, _GivenBack):
            # For what a thread in the middle of an operation is about to put there: it does not ask whether
            # the lock is closed by now.
            self._spare = _GivenBack(self._lock_rows)
        with contextlib.suppress(IndexError):
            # Several threads may be at it.
            while True:
                self._lock_rows.leave(spare.pop())

    @override
    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        # The rows, and what they hold, are the parent's.
        self._spare.clear()
        self._held.clear()
        self._looking.clear()
        self._taking_back = InterruptibleLock()
