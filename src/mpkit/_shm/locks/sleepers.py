"""Who sleeps until something happens, and who must be woken: tickets under a lock, tokens in a semaphore.

Two counters in shared memory. ``slept`` is raised by everybody who is going to sleep, under the lock of the
sleeping side; ``posted`` is raised by whoever wakes, under the lock of the waking side, once for each token
put into the semaphore. So

    tokens in the semaphore + (slept - posted)  =  sleepers

always holds for the living. The truth about *what* is waited for is elsewhere: a token is only a reason to
look again. A sleeper that is killed leaves a ticket or a token too many, which costs the others one look in
vain each time they sleep; a waker killed between ``posted`` and its token, or a woken sleeper killed before
it looked, leaves one sleeper unwoken, which is why nobody sleeps longer than `SLICE_SECONDS` without looking.

No wake-up is lost: a sleeper stores ``slept`` and then looks at the truth again; a waker stores the truth and
then looks at ``slept``. Between store and look each of them gives a robust lock back, which is the full
barrier that this pattern needs on every machine.

Sleepers whose wakers bring one thing at a time are woken one at a time (`Waker.wake` and `pass_on`): while a
token lies in the semaphore no further one is added, and whoever takes it, and leaves something for others,
wakes the next. So a burst costs its waker one token and not one for each thing, and nobody is woken whom the
first one would have left nothing. Nothing is missed: who saw the token there had stored his thing before
that, and who takes the token looks after that.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.locks.robust_lock import PATIENCE_SECONDS, RobustLock
from mpkit._shm.locks.spin import SpinBudget
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore
from mpkit.errors import ClosedError, MpkitError

#: The longest sleep without a look. Five looks a second cost less than a thousandth of a core.
SLICE_SECONDS = 0.2

#: As many sleepers as there may be.
EVERYBODY = 1 << 30

#: Where both counters start in a new file, so that taking back a ticket never goes below zero.
FIRST_TICKET = 1 << 20


class Sleepers:
    """One group of sleepers.

    Args:
        words: the segment's words.
        slept_at: index of the counter that the sleeping side writes.
        posted_at: index of the counter that the waking side writes.
        tokens: the semaphore, created with no permits and a maximum of `MAX_VALUE`.
    """

    __slots__ = ("posted_at", "slept_at", "tokens", "words")

    def __init__(self, words: memoryview[int], *, slept_at: int, posted_at: int, tokens: Semaphore) -> None:
        self.words = words
        self.slept_at = slept_at
        self.posted_at = posted_at
        self.tokens = tokens

    # -- the sleeping side, under its lock -------------------------------------------------------------------

    def enter(self) -> None:
        """Take a ticket. Look at the truth again after giving the lock back, before `sleep`."""
        self.words[self.slept_at] += 1

    def leave(self, *, expired: bool = False) -> None:
        """Hand a ticket back that no token has been taken for; one that has come stays for others.

        Args:
            expired: the last sleep ended without a token; see `renew`.
        """
        if expired:
            self.renew()
        self.words[self.slept_at] -= 1

    def renew(self) -> bool:
        """After a sleep that no token has ended: let the next waker know of at least one sleeper.

        A waker that was killed between its promise and its token would else leave one sleeper unpromised for
        ever. One ticket too many costs a look in vain.

        Returns:
            Whether that was needed: then look at the truth again before the next `sleep`, as after `enter`.
        """
        words = self.words
        if words[self.slept_at] <= words[self.posted_at] and self.tokens.raw._is_zero():
            words[self.slept_at] = words[self.posted_at] + 1
            return True
        return False

    # -- the sleeping side, holding nothing ------------------------------------------------------------------

    def wait_until(
        self,
        lock: RobustLock,
        is_true: Callable[[], bool],
        deadline: float | None,
        woken: Callable[[], object] | None = None,
    ) -> bool:
        """Wait, for somebody who changes nothing himself; False when the deadline passed first.

        Args:
            lock: that of the sleeping side.
            is_true: tells whether the waiting is over; may raise.
            deadline: on the clock of `time.monotonic`; None: for as long as it takes.
            woken: called after each token: the caller is not going to use up what it stood for.
        """
        ticket = Ticket(self)
        try:
            while not is_true():
                now = CLOCK.monotonic()
                if deadline is not None and now >= deadline:
                    return False
                # What is waited for may come while somebody who is stopped has the lock.
                until = now + SLICE_SECONDS
                if lock.run(until if deadline is None else min(deadline, until), ticket.take) is None:
                    continue
                if ticket.sleep(deadline) and woken is not None:
                    woken()
            return True
        finally:
            ticket.give_up(lock)

    def sleep(self, deadline: float | None) -> bool:
        """Wait for a token: until one comes (True), the slice is over or the deadline has passed (False)."""
        if deadline is None:
            return self.tokens.acquire(True, SLICE_SECONDS)
        return self.tokens.acquire(True, min(SLICE_SECONDS, max(deadline - CLOCK.monotonic(), 0.0)))

    # -- the waking side, under its lock ---------------------------------------------------------------------

    def due(self, most: int) -> int:
        """Promise tokens to up to `most` sleepers; `post` them after giving the lock back."""
        words = self.words
        posted = words[self.posted_at]
        waiting = words[self.slept_at] - posted
        number = min(waiting, most, MAX_VALUE)
        if number <= 0:
            return 0
        words[self.posted_at] = posted + number
        return number

    def post(self, number: int) -> None:
        """Hand out the tokens that `due` has promised."""
        release = self.tokens.release
        try:
            for _ in range(number):
                release()
        except ValueError:
            # The semaphore is full of tokens that the dead have not taken: everybody who sleeps is awake
            # already.
            return

    # -- anybody ---------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """How many sleep now: exact when nobody has been killed asleep, else possibly too high."""
        return max(self.words[self.slept_at] - self.words[self.posted_at], 0)


class Ticket:
    """The ticket of one call that waits: taken before its first sleep, again after each token.

    Each turn of such a call looks at the truth under the lock of the sleeping side, and before it gives that
    back calls `take` if there was nothing, `hand_back` if there was; then, holding nothing, `sleep`. At the
    end, however that comes, it calls `give_up`.

    Args:
        sleepers: the group.
        spin: learns from the sleeps how long to look before the next one.

    Attributes:
        woken: whether a token has come, which may have stood for more than this call has found.
        expired: whether the last sleep ended without one.
    """

    __slots__ = ("_is_held", "_may_sleep", "_sleepers", "_spin", "expired", "woken")

    def __init__(self, sleepers: Sleepers, spin: SpinBudget | None = None) -> None:
        self._sleepers = sleepers
        self._spin = spin
        self._is_held = False
        self._may_sleep = False
        self.woken: bool = False
        self.expired: bool = False

    # -- under the lock of the sleeping side -----------------------------------------------------------------

    def take(self) -> bool:
        """The look was in vain: have a ticket that the next waker counts.

        Returns:
            Whether the next `sleep` sleeps.
        """
        if not self._is_held:
            self._sleepers.enter()
            self._is_held = True
            self._may_sleep = False
        elif self.expired and self._sleepers.renew():
            self._may_sleep = False
        return self._may_sleep

    def hand_back(self) -> None:
        """The look was not in vain."""
        if self._is_held:
            self._sleepers.leave(expired=self.expired)
            self._is_held = False

    # -- holding nothing -------------------------------------------------------------------------------------

    def sleep(self, deadline: float | None) -> bool:
        """Sleep until a token comes (True), the slice is over or the deadline has passed.

        With a ticket that is new it returns at once, for one more look: only what comes after that look is
        sure to give a token.
        """
        if not self._may_sleep:
            self._may_sleep = True
            return False
        sleep = self._sleepers.sleep
        if sleep(deadline) if self._spin is None else self._spin.sleep(sleep, deadline):
            self._is_held = self.expired = False
            self.woken = True
            return True
        self.expired = True
        return False

    def give_up(self, lock: RobustLock) -> None:
        """Hand back what is held, under `lock`; if that cannot be had, it costs others a look in vain."""
        if self._is_held:
            with contextlib.suppress(ClosedError):
                lock.run(CLOCK.monotonic() + PATIENCE_SECONDS, self.hand_back)

    def pass_on(self, is_left: Callable[[], bool], waker: Waker) -> None:
        """At the very end: a token that has come stood for all there was, and what is left of that is for the
        next sleeper.

        Never fails: the call has done its work, which must not be lost because a ring cannot be mapped here,
        or another thread has closed the queue by now. Whoever is not told looks within a slice.
        """
        if self.woken:
            with contextlib.suppress(MpkitError):
                if is_left():
                    waker.pass_on()


class Waker:
    """The waking side in one process; its threads share this object.

    Args:
        sleepers: whom to wake.
        lock: the lock of the waking side.
    """

    __slots__ = ("_is_zero", "_lock", "_sleepers", "_words")

    def __init__(self, sleepers: Sleepers, lock: RobustLock) -> None:
        self._sleepers = sleepers
        self._lock = lock
        self._words = sleepers.words
        self._is_zero = sleepers.tokens.raw._is_zero

    def wake(self, number: int) -> int:
        """Wake up to `number` sleepers.

        One that is left asleep because the lock cannot be had looks by itself within a slice.

        Returns:
            The value of ``slept`` at which nobody is known to sleep, or -1.
        """
        if number == 1 and not self._is_zero():
            # Whoever takes the token that lies there sees what has been stored before, and passes on.
            return -1
        try:
            promise = self._lock.run(CLOCK.monotonic() + PATIENCE_SECONDS, self._promise, number)
        except ClosedError:
            return -1
        if promise is None:
            return -1
        due, quiet = promise
        self._sleepers.post(due)
        return quiet

    def _promise(self, number: int) -> tuple[int, int]:
        """How many tokens are to be posted, and what `wake` returns then."""
        sleepers, words = self._sleepers, self._words
        slept = words[sleepers.slept_at]
        due = sleepers.due(number)
        return due, slept if words[sleepers.posted_at] >= slept else -1

    def pass_on(self) -> None:
        """Wake one more, if any sleep: for whoever a token has woken and leaves something for others."""
        if self._sleepers.waiting():
            self.wake(1)
