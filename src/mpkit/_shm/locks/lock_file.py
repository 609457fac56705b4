"""A lock that knows its owner, and survives it.

Whoever has the one permit of a semaphore holds the lock. How far each thread has got is recorded in rows (see
`lock_rows`), so that the lock of a dead process is noticed and passed on. This module contains the steps of
acquiring and releasing in their order; the rows that this process uses for them are in `own_rows`.

In this module a *place* is a row of this process, as the index of its state (see `lock_rows`); the row *is
out* if its state is ``OUT``.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import has_passed
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.locks.lock_rows import ATTEMPTS, COMPLETED, HELD, OUT, RELEASING, TRYING, LockRows
from mpkit._shm.locks.own_rows import OwnRows
from mpkit._shm.locks.robust_lock import fenced
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore

#: A waiting thread waits in slices, and looks for a dead owner after each. The first slice has this length,
#: and each further one twice that of the one before, up to the longest (an investigation must be able to wait
#: until each thread has been seen between two slices).
SLICE_SECONDS = 0.05
_LONGEST_SLICE_SECONDS = 0.2
#: If the lock cannot be acquired, but for this long no process is seen to hold it or to have released it, a
#: waiting thread investigates.
STUCK_SECONDS = 0.08
#: How long a call that must not block waits for the file lock at most. Holders of the file lock are done in
#: microseconds unless they are stopped.
_PATIENCE_SECONDS = 1.0


class LockFile(OwnRows):
    """One lock, as this process has it open."""

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
        #: The last time this process took the lock over from a dead process: the pid of that, the place of
        #: our row, and its `COMPLETED` at that time.
        self._heir_of: tuple[int, int, int] | None = None
        #: Since when no process has been seen to hold the lock or to have released it; when to look again;
        #: the sum of all `COMPLETED` at the last look.
        self._ownerless_since = self._next_look = 0.0
        self._seen_completed = -1
        self._constructed()

    # -- acquire and release ---------------------------------------------------------------------------------

    def acquire(self, block: bool, deadline: float | None) -> bool:
        """Become the owner; if `block`, wait for it until `deadline`. Return whether that succeeded."""
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
            # IndexError from the first step: there is no spare row, because this is the first use in this
            # process, or because several threads use the lock at the same time.
        if taken:
            return True
        if place:
            self._spare.append(place)
        return self._acquire_slowly(block, deadline)

    def release(self) -> bool:
        """Release the lock, whoever owns it; False if nobody does."""
        place = 0
        done = False
        words = self.words
        try:
            place = self._held.pop()
            if words[place] == HELD:
                words[place] = RELEASING
                self.permit_release()
                words[place + COMPLETED] += 1
                if not TOTAL_STORE_ORDER:
                    full_fence()
                words[place] = OUT
                done = True
        except BaseException as error:
            if not place and isinstance(error, IndexError):
                place = -1
            elif isinstance(error, ValueError) and not self.semaphores[0].raw._is_zero():
                # The semaphore refused a second permit: another thread or process has released the lock
                # first.
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
        """The pid of the owner, None if there is none. A dead owner counts."""
        holders = self._lock_rows.holders()
        return holders[-1][1].pid if holders else None

    @property
    def abandoned_by(self) -> int | None:
        """The pid of the dead process from which this process, if it is the owner now, took over the lock."""
        heir_of = self._heir_of
        if heir_of is None:
            return None
        pid, place, completed = heir_of
        words = self.words
        return pid if words[place] == HELD and words[place + COMPLETED] == completed else None

    def _acquire_slowly(self, block: bool, deadline: float | None) -> bool:
        words, take = self.words, self.permit_acquire
        # Even a call that must not block waits for the file lock for a moment, to get a row: that is held
        # only for microseconds.
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
                slice_ = min(2 * slice_, _LONGEST_SLICE_SECONDS)
                if not block or has_passed(deadline):
                    break
        except BaseException:
            self._stop_acquiring(place, taken)
            raise
        if not taken:
            self._put_back(place)
        return taken

    def _inherit(self, place: int, block: bool) -> bool:
        """Look for a dead owner, and take its place if there is one.

        Args:
            place: a row of this thread, which is out.
            block: whether the caller waits, and so will be back for another look.
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
            # The lock is in use. (The last look may be long ago, but while the permit is lost, nobody can
            # complete anything.)
            self._ownerless_since = now
        elif now - self._ownerless_since > STUCK_SECONDS:
            rows.restore(place, self.permit_acquire, self.permit_release)
            self._ownerless_since = now
        self._seen_completed = completed
        return False

    def _release_for_another(self, place: int) -> bool:
        """Release a lock that another process has acquired; False if nobody holds it.

        Args:
            place: a row in which this process held the lock until another one released it; -1: none.
        """
        if place > 0:
            self._taking_back.run(self._spare.append, place)
        self._refuse_reentry()
        self.check_open()
        try:
            return self._with_file_lock(lambda: self._lock_rows.take_from_holder(self.permit_release))
        except ValueError:
            self.check_open()
            return False  # the owner has just released it itself

    # -- after an exception ----------------------------------------------------------------------------------

    # If an exception (Ctrl-C) comes between the operation on the semaphore and the store that records it, the
    # permit counts as lost, as if this process had died there. The next thread that waits finds out that
    # nobody has it (`LockRows.restore`).

    def _stop_acquiring(self, place: int, taken: bool) -> None:
        """After an exception in `acquire`: give back what it has taken.

        Args:
            place: the row; 0: it had none yet.
            taken: whether it is known to have taken the permit.
        """
        if not place:
            return
        if place in self._held:
            try:
                self._held.remove(place)
            except ValueError:
                return  # another thread has released it already
        self._give_up(place, has_permit=taken or self.words[place] == HELD)

    def _stop_releasing(self, place: int) -> None:
        """After an exception in `release`: complete the release.

        Args:
            place: the row; 0: it is not known.
        """
        if not place:
            # The exception came after the row was taken out of the list, but before `place` was assigned. So
            # it is the row of this process that says `HELD` and is not in the list.
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
            # Another exception came meanwhile. The row tells how far the first call has got, so that the
            # second one can do the rest. The row is not reused.
            self._clear_row(place, has_permit)
            raise
        self._put_back(place)

    def _clear_row(self, place: int, has_permit: bool) -> None:
        words = self.words
        if has_permit and words[place] in (TRYING, HELD):
            words[place] = RELEASING
            self.permit_release()
        if words[place] == TRYING:
            # It is not known whether this thread had taken the permit. If it had, the permit is lost now, and
            # is found in the same way as after a death. In any case this thread does not have it any more.
            words[place + ATTEMPTS] += 1
        elif words[place] != OUT:
            words[place + COMPLETED] += 1
        # As in `release`.
        full_fence()
        words[place] = OUT

    @override
    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        self._heir_of = None
