"""Sleeping until something happens, and waking the sleepers: tickets under a lock, tokens in a semaphore.

*Sleepers* are processes (or threads) that wait for a condition on shared memory, such as an item in a queue;
*wakers* are those that make it true. There are two counters in shared memory. ``slept`` is raised by each
sleeper before it sleeps (it takes a *ticket*), under the lock of the sleeping side. ``posted`` is raised by
wakers, under the lock of the waking side, once for each *token* that they put into the semaphore. So, as long
as no process dies,

    tokens in the semaphore + (slept - posted)  =  sleepers

A token never decides anything: it is only a reason to look at the condition again. A sleeper that is killed
leaves one ticket or token too many, which costs the others one look in vain each time they sleep. A waker
that is killed between raising ``posted`` and adding its token, or a woken sleeper that is killed before it
has looked, leaves one sleeper unwoken. This is why nobody sleeps longer than `SLICE_SECONDS` without looking.

No wake-up is lost: a sleeper stores ``slept`` and then looks at the condition again; a waker stores what
makes the condition true and then looks at ``slept``. Between the store and the look each of them gives a
robust lock back, which is the full barrier that this pattern needs on every machine.

If wakers bring one thing at a time, sleepers are woken one at a time (`Waker.wake` and `pass_on`): while
there is a token in the semaphore, no further one is added, and the sleeper that takes it wakes the next one
if it leaves something for others. So a burst costs its waker one token instead of one for each thing, and no
sleeper is woken just to find that the first one has taken everything. Nothing is missed: a waker that has
seen the token had stored its thing before that, and the sleeper that takes the token looks after that.
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

#: More than the number of sleepers can be: for `Waker.wake`, to wake all of them.
EVERYBODY = 1 << 30

#: Where both counters start in a new file, so that taking back a ticket never goes below zero.
FIRST_TICKET = 1 << 20


class Sleepers:
    """One group of sleepers, which wait for the same condition.

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
        """Take a ticket. Before `sleep`, give the lock back and look at the condition again."""
        self.words[self.slept_at] += 1

    def leave(self, *, expired: bool = False) -> None:
        """Hand back a ticket for which no token was taken. A token promised for it is left to others.

        Args:
            expired: whether the last sleep ended without a token; see `renew`.
        """
        if expired:
            self.renew()
        self.words[self.slept_at] -= 1

    def renew(self) -> bool:
        """After a sleep that ended without a token: make sure that the next waker counts a sleeper.

        Otherwise a waker that was killed after raising ``posted`` and before adding its token would leave one
        sleeper uncounted for ever. One ticket too many costs only a look in vain.

        Returns:
            Whether a ticket was added. Then the caller has to look at the condition again before the next
            `sleep`, as after `enter`.
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
        """Wait for a condition, without changing anything; False when the deadline passed first.

        Args:
            lock: the lock of the sleeping side.
            is_true: tells whether the condition is true; may raise.
            deadline: on the clock of `time.monotonic`; None: no limit.
            woken: called after each token that was taken, because the caller does not take the thing that the
                token announced.
        """
        ticket = Ticket(self)
        try:
            while not is_true():
                now = CLOCK.monotonic()
                if deadline is not None and now >= deadline:
                    return False
                # In slices, because the condition may become true while a stopped process has the lock.
                until = now + SLICE_SECONDS
                if lock.run(until if deadline is None else min(deadline, until), ticket.take) is None:
                    continue
                if ticket.sleep(deadline) and woken is not None:
                    woken()
            return True
        finally:
            ticket.give_up(lock)

    def sleep(self, deadline: float | None) -> bool:
        """Wait for a token. True: it was taken; False: the slice is over, or the deadline has passed."""
        if deadline is None:
            return self.tokens.acquire(True, SLICE_SECONDS)
        return self.tokens.acquire(True, min(SLICE_SECONDS, max(deadline - CLOCK.monotonic(), 0.0)))

    # -- the waking side, under its lock ---------------------------------------------------------------------

    def due(self, most: int) -> int:
        """Promise tokens to up to `most` sleepers: raise ``posted``.

        Returns:
            How many. The caller has to `post` as many tokens after giving the lock back.
        """
        words = self.words
        posted = words[self.posted_at]
        waiting = words[self.slept_at] - posted
        number = min(waiting, most, MAX_VALUE)
        if number <= 0:
            return 0
        words[self.posted_at] = posted + number
        return number

    def post(self, number: int) -> None:
        """Add the tokens that `due` has promised."""
        release = self.tokens.release
        try:
            for _ in range(number):
                release()
        except ValueError:
            # The semaphore is full, so there is a token for every sleeper already.
            return

    # -- anybody ---------------------------------------------------------------------------------------------

    def waiting(self) -> int:
        """How many sleepers have been promised no token; if one was killed, this may be too high."""
        return max(self.words[self.slept_at] - self.words[self.posted_at], 0)


class Ticket:
    """The ticket of one call that waits. It is taken before the first sleep, and again after each token.

    In each turn, the call looks at the condition under the lock of the sleeping side. Before giving the lock
    back it calls `take` if the look was in vain, otherwise `hand_back`; then, without the lock, `sleep`. At
    the end, also after an exception, it calls `give_up`.

    Args:
        sleepers: the group.
        spin: learns from the sleeps how long to spin before the next one.

    Attributes:
        woken: whether a token was taken, which may have announced more than this call has found.
        expired: whether the last sleep ended without a token.
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
        """The look was in vain: make sure to have a ticket that the next waker counts.

        Returns:
            Whether the next `sleep` sleeps; otherwise it returns at once, for another look.
        """
        if not self._is_held:
            self._sleepers.enter()
            self._is_held = True
            self._may_sleep = False
        elif self.expired and self._sleepers.renew():
            self._may_sleep = False
        return self._may_sleep

    def hand_back(self) -> None:
        """The look was not in vain: hand back the ticket, if there is one."""
        if self._is_held:
            self._sleepers.leave(expired=self.expired)
            self._is_held = False

    # -- holding nothing -------------------------------------------------------------------------------------

    def sleep(self, deadline: float | None) -> bool:
        """Sleep until a token comes (True), or the slice is over or the deadline has passed (False).

        With a new ticket it returns False at once, for one more look: only for what comes after that look a
        token is certain.
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
        """Hand back the ticket, under `lock`. If that is not to be had, others look once in vain."""
        if self._is_held:
            with contextlib.suppress(ClosedError):
                lock.run(CLOCK.monotonic() + PATIENCE_SECONDS, self.hand_back)

    def pass_on(self, is_left: Callable[[], bool], waker: Waker) -> None:
        """At the very end: if a token was taken and something is left, wake the next sleeper.

        (One token may have announced several things.) Errors of mpkit are ignored: the call has done its
        work, which must not be lost because a ring cannot be mapped here, or another thread has just closed
        the queue. A sleeper that is not woken looks within a slice.

        Args:
            is_left: whether there is something for another sleeper.
            waker: wakes the same group.
        """
        if self.woken:
            with contextlib.suppress(MpkitError):
                if is_left():
                    waker.pass_on()


class Waker:
    """The waking side in one process; its threads share this object.

    Args:
        sleepers: the group to wake.
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

        If the lock is not to be had, nobody is woken; each sleeper looks by itself within a slice.

        Returns:
            The value of ``slept``, if every sleeper counted in it has been woken; else -1. As long as it has
            not changed, nobody needs to be woken.
        """
        if number == 1 and not self._is_zero():
            # The sleeper that takes the present token sees what was stored before now, and passes it on.
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
        """Under the lock: how many tokens are to be posted, and what `wake` returns after that."""
        sleepers, words = self._sleepers, self._words
        slept = words[sleepers.slept_at]
        due = sleepers.due(number)
        return due, slept if words[sleepers.posted_at] >= slept else -1

    def pass_on(self) -> None:
        """Wake one more sleeper, if there is any: for a woken sleeper that leaves something for others."""
        if self._sleepers.waiting():
            self.wake(1)
