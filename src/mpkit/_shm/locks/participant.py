"""This process's part in a shared object: its row, and the robust locks that use the row.

The process takes the row when it first uses the object, and gives it back when it closes the object. Below
this layer is the file (`shared_file`), above it is the sharing between handles (`shared_object`).
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
    """One object, as this process has it open, for all its threads."""

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
        self.closed: bool = False  # operations that begin now raise ClosedError
        self._row = 0  # its first word; 0: none
        # The process in which the state of this object was set up; another one in a fork, until the hook has
        # run.
        self._process = os.getpid()
        # `close` has nothing to do: it has been completed, or the constructor has not.
        self._left = True
        self._joining_or_closing = InterruptibleLock()
        self._marks = ForkMarks(segment)
        # The threads that want to close it, or are closing it.
        self._closing: set[int] = set()
        self.name: str = segment.name
        self.segment: Segment = segment
        self.semaphores: list[Semaphore] = semaphores
        self.words: memoryview[int] = segment.words
        self.rows: Rows = form.rows(segment)
        self.locks: list[RobustLock] = [
            RobustLock(self.rows, number, semaphores[number], join=self._join) for number in range(form.locks)
        ]

    def _constructed(self) -> None:
        """Called last by the constructors of subclasses: from now on there is something to close."""
        self._left = False
        # `close` closes them, because only it knows whether another process still needs the names.
        self.segment.managed = True
        for semaphore in self.semaphores:
            semaphore.managed = True

    def check_open(self) -> None:
        """Raise ClosedError if this process has closed the object."""
        if self.closed:
            raise ClosedError(f"this {self.form.kind} is closed in this process")

    def close(self) -> None:
        """Close the object in this process. Calling it again does nothing.

        Operations of other threads that are under way end first (this waits for them for `SHUT_SECONDS` at
        most); later ones raise ClosedError.

        Raises:
            RuntimeError: called in the middle of an operation of the same thread (from a signal handler).
        """
        if self._process != os.getpid():
            # In a forked child, a garbage collection can come here before the hook for forks has run. The
            # locks between threads would still be shared with the parent, and each process could wait for the
            # other.
            self.forget_after_fork()
        self._refuse_inside()
        lock = self._joining_or_closing
        me = threading.get_ident()
        try:
            # Before waiting for the lock: a thread that joins has it, and while a process is stopped would
            # not give it back unless it sees that another thread wants to close.
            self._closing.add(me)
            lock.acquire()
            self._close()
            lock.release()
        except BaseException:
            try:
                # Complete first what an interrupt has left half done.
                if lock.is_owned():
                    self._close()
                lock.unwind()
            finally:
                lock.unwind()
            raise
        finally:
            self._closing.discard(me)

    def _close(self) -> None:
        """Do the work of `close`. Each step does nothing the second time, so this can be repeated."""
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
        """Whether another process has the object open, or a handle to it may be under way to one."""
        marked = self._marks.drop()
        # A forked child has no row before its first use. If there is no mark that would tell of it, assume
        # that it has the object open.
        if self.segment.closed or (self._marks.forked and not marked):
            return True
        return is_in_use(self.rows, under_way=True, besides=self)

    def _leave(self, *, outside: bool) -> None:
        """Give the row back.

        Args:
            outside: whether no thread of this process is inside an operation any more.
        """
        # Forgotten before it is given back: given back twice, it might be another process's the second time.
        row, self._row = self._row, 0
        # A thread that is still inside may yet get a lock, and only the row would show that to the others.
        if row and outside:
            self.rows.leave(row)

    def _close_more(self) -> None:
        """Overridden by subclasses that have more to close."""

    def _join(self, deadline: float | None) -> bool:
        """Take a row for this process; called by slow paths when it has none. False when the deadline passed.

        Raises:
            ClosedError: this process has closed the object.
            RuntimeError: this is a signal handler in a thread that is just joining or closing.
        """
        self._refuse_reentry()
        joined = self._joining_or_closing.run_within(remaining(deadline), self._join_if_open, deadline)
        return joined is not None and joined[0]

    def _join_if_open(self, deadline: float | None) -> bool:
        while True:
            self.check_open()
            if self._row:
                return True
            # In slices, because a thread that wants to close waits for this one.
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
        """Raise RuntimeError if the calling thread is in the middle of an operation."""
        self._refuse_reentry()
        for lock in self.locks:
            lock.refuse_reentry()

    def _take_row(self, deadline: float | None) -> bool:
        """Get a row for this process and open the locks; False when the deadline passed."""
        row = self.rows.join(deadline)
        if row < 0:
            return False
        try:
            for lock in self.locks:
                lock.open(row)
        except BaseException:
            # There may be no room for the locks between threads. Each attempt would cost a row.
            for lock in self.locks:
                lock.shut()
            self.rows.leave(row)
            raise
        self._row = row
        return True

    def prepare_fork(self) -> None:
        """Before a fork, in the creator: mark the file, to show that the child has it open as well."""
        if self.segment._owner_pid != os.getpid():
            return
        self._marks.make()
        if self.closed:
            # Perhaps by another thread in the meantime, which has not seen the mark.
            self._marks.drop()

    def forget_after_fork(self) -> None:
        """After a fork, in the child: drop the parent's row, and the locks that its threads may hold."""
        self._process = os.getpid()
        self._joining_or_closing = InterruptibleLock()
        self._closing = set()
        self._row = 0
        if not self.closed:
            for lock in self.locks:
                lock.forget()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter is shutting down, the exit hook of `names` has removed everything, and modules
        # are half gone.
        if not _is_finalizing() and not getattr(self, "_left", True):
            self.close()
