"""A lock that knows its owner, and outlives it.

The truth is a semaphore with one permit. Who is at it, and how far, stands in the rows (see `lock_rows`): so
what the dead had is found out and handed on. Here is the order of the steps; which rows this process has for
that is in `own_rows`.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER
from mpkit._shm.locks.lock_rows import ATTEMPTS, COMPLETED, HELD, OUT, RELEASING, TRYING, LockRows
from mpkit._shm.locks.own_rows import OwnRows
from mpkit._shm.locks.robust_lock import fenced
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore

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


class LockFile(OwnRows):
    """One lock as this process has it open."""

    __slots__ = (
        "_heir_of",
        "_next_look",
        "_ownerless_since",
        "_seen_completed",
        "permit_acquire",
        "permit_release",
    )

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        permit = semaphores[0]
        self.permit_acquire: Callable[..., bool] = permit.acquire
        self.permit_release: Callable[[], None] = permit.release
        if not TOTAL_STORE_ORDER:
            self.permit_acquire, self.permit_release = fenced(permit)
        #: Whom this process has taken the lock over from last, and what its row had completed before.
        self._heir_of: tuple[int, int, int] | None = None
        self._ownerless_since = self._next_look = 0.0
        self._seen_completed = -1

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

    @override
    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        self._heir_of = None
