"""This process's rows of a lock: which of them are unused (*spare*), and in which it holds the lock.

While a thread tries to acquire or release the lock, a row belongs to that thread; while the lock is held, the
row belongs to the lock, whichever thread releases it. Rows are passed on through two lists, by single calls
of `append` and `pop`, which are atomic with and without a global interpreter lock. The steps of acquiring and
releasing are in `lock_file`; what the words of a row mean, in `lock_rows`.
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
    """Replaces the list of spare rows when the lock is closed: it stays empty, and gives rows back.

    So `release` need not check whether the lock is closed after it has put a row back, and an interrupt in
    between cannot keep it from that.
    """

    def __init__(self, rows: LockRows) -> None:
        super().__init__()
        self._rows = rows

    def append(self, place: int) -> None:
        """Give the row back to the table."""
        self._rows.leave(place)


class OwnRows(SharedObject):
    """The file of a lock, and this process's rows in it."""

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
        #: The places of this process's unused rows.
        self._spare: list[int] = []
        #: The place of the row in which this process holds the lock. Before it, places of rows in which it
        #: held the lock until another process released it.
        self._held: list[int] = []
        #: The threads that may have the file lock now.
        self._looking: set[int] = set()
        self._taking_back = InterruptibleLock()

    def _with_file_lock(self, work: Callable[[], bool]) -> bool:
        """Call `work`, which may take the file lock; `_refuse_reentry` raises in this thread meanwhile.

        Otherwise a signal handler in this thread could wait for the file lock that its own thread has.
        """
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
        """The place of a row for the calling thread alone; -1 when the deadline passed.

        Raises:
            ClosedError: this process has closed the lock.
            RuntimeError: this is a signal handler in a thread that is just looking at the rows.
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
        """Make rows spare again in which this process held the lock until another process released it.

        Only such rows are out while they are in the list of held rows. They become spare here or, under the
        same lock, in a `release` that comes upon one.

        Returns:
            Whether there may be spare rows now.
        """
        return self._taking_back.run(self._move_released)

    def _move_released(self) -> bool:
        found = False
        for place in self._held[:]:
            if self.words[place] != OUT:
                continue
            with contextlib.suppress(ValueError):  # a release has just come upon it
                self._held.remove(place)
                # Checked again, now that it is out of the list: meanwhile another thread may have released
                # the lock and acquired it again in this very row.
                if self.words[place] == OUT:
                    self._spare.append(place)
                    found = True
                else:
                    self._held.append(place)
        # Another thread may have been here while this one waited for its turn; what it found is enough.
        return found or bool(self._spare)

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
        # Rows in use are given back by their threads. A row that holds the lock stays: closing does not
        # release the lock.
        self._held.clear()
        spare = self._spare
        if not isinstance(spare, _GivenBack):
            # For threads in the middle of an operation, which put their row there without checking whether
            # the lock has been closed.
            self._spare = _GivenBack(self._lock_rows)
        # IndexError: the list is empty. (Several threads may be emptying it.)
        with contextlib.suppress(IndexError):
            while True:
                self._lock_rows.leave(spare.pop())

    @override
    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        # The rows, and the lock if it is held, are the parent's.
        self._spare.clear()
        self._held.clear()
        self._looking.clear()
        self._taking_back = InterruptibleLock()
