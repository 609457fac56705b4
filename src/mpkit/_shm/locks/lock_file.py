"""A lock that knows its owner, and outlives it.

The truth is a semaphore with one permit. Who is at it, and how far, stands in the rows (see lock_rows): so
what the dead had is found out and handed on. A row belongs to one thread from the try to the end of it, and
then to the lock for as long as it is held, whoever releases it: the lists `_spare` and `_held` hand the rows
on, by single calls of `append` and `pop`, which are atomic with and without a global interpreter lock.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from typing import ClassVar

from mpkit._platform.processes import identity
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER
from mpkit._shm.locks.lock_rows import ATTEMPTS, COMPLETED, HELD, OUT, RELEASING, TRYING, LockRows
from mpkit._shm.locks.robust_lock import REENTERED, fenced
from mpkit._shm.locks.shared_object import MAGIC_BASE, RECOVERIES, Form, SharedObject
from mpkit._shm.memory.rows import ROW_WORDS
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore

_ROWS_AT = 64
_ROW_SLOTS = 4096
#: A waiter steps out after so long, and looks for a dead owner; each time after twice as long, up to the
#: longest (which an investigation must be able to wait for).
SLICE_SECONDS = 0.05
LONGEST_SLICE_SECONDS = 0.2
#: So long nobody may be seen to hold the lock, or to have held it, though it is taken, before a waiter
#: investigates.
STUCK_SECONDS = 0.08
#: A call that may not block does not wait longer than this for the file lock; its holders are done in
#: microseconds unless they are stopped.
_PATIENCE_SECONDS = 1.0


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


class _LockForm(Form):
    """What the file of a lock looks like."""

    kind = "lock"
    magic = MAGIC_BASE | 0x4C
    file_bytes = (_ROWS_AT + _ROW_SLOTS * ROW_WORDS) * 8
    reserved_bytes = _ROWS_AT * 8
    rows_at = _ROWS_AT
    rows_capacity = _ROW_SLOTS
    semaphores = ((1, 1),)
    locks = 0
    noun = "lock"


class LockFile(SharedObject):
    """One lock as this process has it open."""

    __slots__ = (
        "_heir_of",
        "_held",
        "_lock_rows",
        "_looking",
        "_next_look",
        "_ownerless_since",
        "_seen_completed",
        "_spare",
        "_taking_back",
        "permit_acquire",
        "permit_release",
    )

    form: ClassVar[type[Form]] = _LockForm

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        permit = semaphores[0]
        self.permit_acquire: Callable[..., bool] = permit.acquire
        self.permit_release: Callable[[], None] = permit.release
        if not TOTAL_STORE_ORDER:
            self.permit_acquire, self.permit_release = fenced(permit)
        self._lock_rows = LockRows(self.rows, recoveries_at=RECOVERIES)
        #: Places of rows of this process that nobody uses.
        self._spare: list[int] = []
        #: The place of the row in which this process holds the lock. (Before it, those of locks that others
        #: have released.)
        self._held: list[int] = []
        #: Whom this process has taken the lock over from last, and what its row had completed before.
        self._heir_of: tuple[int, int, int] | None = None
        self._ownerless_since = self._next_look = 0.0
        self._seen_completed = -1
        #: Threads that may have the file lock now.
        self._looking: set[int] = set()
        self._taking_back = seam.InterruptibleLock()

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:
        """A new lock is free, and zeros say so."""

    # -- acquire and release ---------------------------------------------------------------------------------

    def acquire(self, block: bool, deadline: float | None) -> bool:
        """Become the owner, waiting until `deadline` if `block`."""
        place = 0
        taken = False
        words = self.words
        try:
            place = self._spare.pop()
            words[place] = TRYING
            taken = self.permit_acquire(False)
            if taken:
                words[place] = HELD
                self._held.append(place)
            else:
                words[place + ATTEMPTS] += 1
                words[place] = OUT
        except BaseException as error:
            self._stop_acquiring(place, taken)
            if place or not isinstance(error, IndexError):
                raise
            # No spare row: the first use in this process, or several threads at a time.
        if taken:
            return True
        if place:
            self._spare.append(place)
        return self._acquire_slowly(block, deadline)

    def release(self) -> bool:
        """Free the lock, whoever owns it; False when nobody does."""
        place = 0
        done = False
        words = self.words
        try:
            place = self._held.pop()
            if words[place] == HELD:
                words[place] = RELEASING
                self.permit_release()
                words[place + COMPLETED] += 1
                words[place] = OUT
                done = True
        except BaseException as error:
            if not place and isinstance(error, IndexError):
                place = -1
            elif isinstance(error, ValueError) and not self.semaphores[0].raw._is_zero():
                # The permit was there: somebody else has been quicker.
                self._stop_releasing(place)
                return False
            else:
                self._stop_releasing(place)
                raise
        if done:
            self._spare.append(place)
            return True
        return self._release_for_another(place)

    def owner(self) -> int | None:
        """Pid of the owner."""
        holders = self._lock_rows.holders()
        return holders[-1][1].pid if holders else None

    @property
    def abandoned_by(self) -> int | None:
        """Pid of the dead process that the present owner, if it is this process, took the lock over from."""
        heir_of = self._heir_of
        if heir_of is None:
            return None
        pid, place, completed = heir_of
        words = self.words
        return pid if words[place] == HELD and words[place + COMPLETED] == completed else None

    def _acquire_slowly(self, block: bool, deadline: float | None) -> bool:
        words, take = self.words, self.permit_acquire
        # Waiting for the file lock is not waiting for the lock: it is kept for microseconds.
        patience = CLOCK.monotonic() + _PATIENCE_SECONDS
        place = self._row_for_this_thread(
            None if block and deadline is None else max(deadline or 0.0, patience)
        )
        if place < 0:
            return False
        taken = False
        slice_ = SLICE_SECONDS
        try:
            while True:
                words[place] = TRYING
                wait = slice_ if deadline is None else min(slice_, deadline - CLOCK.monotonic())
                taken = take(True, wait) if block and wait > 0 else take(False)
                if taken:
                    self.check_open()
                    words[place] = HELD
                    self._held.append(place)
                    break
                words[place + ATTEMPTS] += 1
                words[place] = OUT
                self.check_open()
                if self._inherit(place, block):
                    taken = True
                    break
                slice_ = min(2 * slice_, LONGEST_SLICE_SECONDS)
                if not block or has_passed(deadline):
                    break
        except BaseException:
            self._stop_acquiring(place, taken)
            raise
        if not taken:
            self._put_back(place)
        return taken

    def _inherit(self, place: int, block: bool) -> bool:
        """Look for a dead owner, and take its place if there is one. `place` is a row of this thread, which
        is out.
        """
        rows, now = self._lock_rows, CLOCK.monotonic()
        if block and now < self._next_look:
            return False  # another thread of this process has just looked
        self._next_look = now + SLICE_SECONDS / 2
        return self._with_file_lock(lambda: self._take_place_of_dead(rows, place, now))

    def _take_place_of_dead(self, rows: LockRows, place: int, now: float) -> bool:
        holders, completed = rows.holders(), rows.completed()
        if rows.dead_ones(holders):
            dead = rows.inherit(place, now + _PATIENCE_SECONDS)
            if dead is not None:
                self._held.append(place)
                self._heir_of = (dead.pid, place, self.words[place + COMPLETED])
                return True
        elif holders or completed != self._seen_completed:
            # However long ago the last look was: a permit that is lost keeps everybody from completing
            # anything.
            self._ownerless_since = now
        elif now - self._ownerless_since > STUCK_SECONDS:
            rows.restore(place, self.permit_acquire, self.permit_release)
            self._ownerless_since = now
        self._seen_completed = completed
        return False

    def _release_for_another(self, place: int) -> bool:
        """Free a lock that another process has acquired.

        Args:
            place: a row in which this process held the lock until somebody else released it; else -1.
        """
        if place > 0:
            self._taking_back.run(self._spare.append, place)
        self._refuse_reentry()
        self.check_open()
        try:
            return self._with_file_lock(lambda: self._lock_rows.take_from_holder(self.permit_release))
        except ValueError:
            self.check_open()
            return False  # the owner itself has been quicker

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

    def _refuse_reentry(self) -> None:
        if threading.get_ident() in self._looking:
            raise RuntimeError(REENTERED)

    # -- after an exception ----------------------------------------------------------------------------------

    # Where an exception (Ctrl-C) comes between the semaphore's operation and the store that tells of it, the
    # permit counts as lost: the next one who waits finds that nobody has it (`LockRows.restore`).

    def _stop_acquiring(self, place: int, taken: bool) -> None:
        """An exception has ended `acquire`: what it has is given back."""
        if not place:
            return
        if place in self._held:
            try:
                self._held.remove(place)
            except ValueError:
                return  # another thread has released it already
        self._give_up(place, has_permit=taken or self.words[place] == HELD)

    def _stop_releasing(self, place: int) -> None:
        """An exception has ended `release`: the lock is free all the same."""
        if not place:
            # It was taken out of the list, and no more: it is the row that says so and is in no list.
            me = identity.current()
            for held, process in self._lock_rows.holders():
                if process == me and held not in self._held:
                    place = held
        if place:
            self._give_up(place, has_permit=self.words[place] == HELD)

    def _give_up(self, place: int, *, has_permit: bool) -> None:
        try:
            self._clear_row(place, has_permit)
        except BaseException:
            # One more on the way: the row tells how far that has got. It is not used again.
            self._clear_row(place, has_permit)
            raise
        self._put_back(place)

    def _clear_row(self, place: int, has_permit: bool) -> None:
        words = self.words
        if has_permit and words[place] in (TRYING, HELD):
            words[place] = RELEASING
            self.permit_release()
        if words[place] == TRYING:
            # It has nothing now, and whether it had the permit it does not know: then that is nobody's, and
            # is found like that of the dead.
            words[place + ATTEMPTS] += 1
        elif words[place] != OUT:
            words[place + COMPLETED] += 1
        words[place] = OUT

    # -- rows ------------------------------------------------------------------------------------------------

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

    def _must_stay(self, row: int) -> bool:
        # Whoever takes the place of a dead owner is to be told of it.
        return self._lock_rows.is_held(row)

    def _take_row(self, deadline: float | None) -> bool:
        place = self._lock_rows.join(deadline)
        if place >= 0:
            self._spare.append(place)
        return place >= 0

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

    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        # The rows, and what they hold, are the parent's.
        self._spare.clear()
        self._held.clear()
        self._heir_of = None
        self._looking.clear()
        self._taking_back = seam.InterruptibleLock()
