"""This process's part in a shared object: one row, which it takes at the first use and gives back when it
closes the object, and the robust locks that go with the row.

Below it is the file (`shared_file`), above it how handles find what is open here already (`shared_object`).
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from typing import ClassVar

from mpkit._platform.stdlib import tracker
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.locks import robust_lock
from mpkit._shm.locks.robust_lock import REENTERED, RobustLock
from mpkit._shm.locks.shared_file import Form
from mpkit._shm.locks.users import ForkMarks, Opened, in_use_elsewhere, is_in_use
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError


class Participant(Opened):
    """One object as this process has it open, for all its threads."""

    __slots__ = (
        "_closing",
        "_joining_or_closing",
        "_left",
        "_marks",
        "_process",
        "_row",
        "locks",
        "name",
        "rows",
        "segment",
        "semaphores",
        "words",
    )

    form: ClassVar[Form]

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        form = self.form
        self.closed: bool = False  # no later use
        self._row = 0
        # Whose the row is, and the threads that are inside.
        self._process = os.getpid()
        self._left = False  # closed to the end
        self._joining_or_closing = InterruptibleLock()
        self._marks = ForkMarks(segment)
        # The threads that are about to close it.
        self._closing: set[int] = set()
        self.name: str = segment.name
        self.segment: Segment = segment
        self.semaphores: list[Semaphore] = semaphores
        self.words: memoryview[int] = segment.words
        # Only `close` knows whether anybody else still needs the names.
        segment.managed = True
        for semaphore in semaphores:
            semaphore.managed = True
        self.rows: Rows = form.rows(segment)
        self.locks: list[RobustLock] = [
            RobustLock(self.rows, number, semaphores[number], join=self._join) for number in range(form.locks)
        ]

    def check_open(self) -> None:
        """Raise ClosedError if this process has closed the object."""
        if self.closed:
            raise ClosedError(f"this {self.form.kind} is closed in this process")

    def close(self) -> None:
        """Leave the object: operations of other threads that are under way end first, later ones raise
        ClosedError.

        Raises:
            RuntimeError: called from inside an operation of this very thread (a signal handler).
        """
        if self._process != os.getpid():
            # In a child a garbage collection has come before the hook for forks: the locks between threads
            # are the parent's as well, and each process would wait for the other.
            self.forget_after_fork()
        self._refuse_inside()
        lock = self._joining_or_closing
        me = threading.get_ident()
        try:
            # First: a thread that has it may wait for as long as a stopped process stays stopped.
            self._closing.add(me)
            lock.acquire()
            self._close()
            lock.release()
        except BaseException:
            try:
                # What an interrupt has left half done is ended first.
                if lock.is_owned():
                    self._close()
                lock.unwind()
            finally:
                lock.unwind()
            raise
        finally:
            self._closing.discard(me)

    def _close(self) -> None:
        """Each step does nothing the second time, so that after an interrupt the whole can be done again."""
        if self._left:
            return
        deadline = CLOCK.monotonic() + robust_lock.SHUT_SECONDS
        outside = [lock.begin_to_shut(deadline) for lock in self.locks]
        self.closed = True
        for lock, is_outside in zip(self.locks, outside, strict=True):
            lock.shut(outside=is_outside)
        in_use = in_use_elsewhere if self._may_be_in_use() else None
        self._leave(outside=all(outside))
        self._close_more()
        with tracker.in_one_message():
            self.segment.close(in_use)
            for semaphore in self.semaphores:
                semaphore.close(self.name, in_use)
        self._left = True

    def _may_be_in_use(self) -> bool:
        """Whether another process has the object open, or a handle of it may be under way to one."""
        marked = self._marks.drop()
        # A child that was forked has no row before its first use. Where no mark tells of it, it may be there.
        if self.segment.closed or (self._marks.forked and not marked):
            return True
        return is_in_use(self.rows, under_way=True, besides=self)

    def _leave(self, *, outside: bool) -> None:
        """Give the row back."""
        # First it is forgotten: given back twice it might be another's the second time.
        row, self._row = self._row, 0
        # A thread that is still inside may come to hold the lock: only its row lets the others know.
        if row and outside:
            self.rows.leave(row)

    def _close_more(self) -> None:
        """What a subclass has to let go of as well."""

    def _join(self, deadline: float | None) -> bool:
        """Have this process take part; called by a slow path where it does not.

        Raises:
            ClosedError: this process has closed the object.
            RuntimeError: this very thread is in the middle of joining or closing (a signal handler has come
                in between).
        """
        self._refuse_reentry()
        joined = self._joining_or_closing.run_within(remaining(deadline), self._join_if_open, deadline)
        return joined is not None and joined[0]

    def _join_if_open(self, deadline: float | None) -> bool:
        while True:
            self.check_open()
            if self._row:
                return True
            # In slices: whoever wants to close waits for this thread.
            slice_ends = CLOCK.monotonic() + robust_lock.SHUT_SLICE_SECONDS
            if self._take_row(slice_ends if deadline is None else min(slice_ends, deadline)):
                return True
            if self._closing:
                raise ClosedError(f"this {self.form.kind} is being closed in this process")
            if has_passed(deadline):
                return False

    def _refuse_reentry(self) -> None:
        if self._joining_or_closing.is_owned():
            raise RuntimeError(REENTERED)

    def _refuse_inside(self) -> None:
        """Raise RuntimeError if this very thread is in the middle of an operation."""
        self._refuse_reentry()
        for lock in self.locks:
            lock.refuse_reentry()

    def _take_row(self, deadline: float | None) -> bool:
        """Give this process a row and open the locks."""
        row = self.rows.join(deadline)
        if row < 0:
            return False
        try:
            for lock in self.locks:
                lock.open(row)
        except BaseException:
            # No room for the locks between threads: the row must not be lost with every try.
            for lock in self.locks:
                lock.shut()
            self.rows.leave(row)
            raise
        self._row = row
        return True

    def prepare_fork(self) -> None:
        """Before a fork: the child is going to have the object open as well, and the creator shall know."""
        if self.segment._owner_pid != os.getpid():
            return
        self._marks.make()
        if self.closed:
            # By another thread, perhaps meanwhile.
            self._marks.drop()

    def forget_after_fork(self) -> None:
        """In the child: the row is the parent's, and threads that do not exist here may have held
        anything.
        """
        self._process = os.getpid()
        self._joining_or_closing = InterruptibleLock()
        self._closing = set()
        self._row = 0
        if not self.closed:
            for lock in self.locks:
                lock.forget()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter the exit hook of `names` has removed everything, and modules are half
        # gone.
        if not _is_finalizing() and not getattr(self, "_left", True) and hasattr(self, "locks"):
            self.close()
