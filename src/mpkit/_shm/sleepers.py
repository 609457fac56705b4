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

import time
from collections.abc import Callable

from mpkit._shm.robust_lock import PATIENCE_SECONDS, RobustLock
from mpkit._shm.semaphore import MAX_VALUE, Semaphore

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

    def give_up(self, lock: RobustLock, *, expired: bool) -> None:
        """Take the lock of the sleeping side and `leave`; one that cannot be had costs a look in vain."""
        lock.refuse_reentry()
        try:
            if lock.acquire_if_open(time.monotonic() + PATIENCE_SECONDS):
                self.leave(expired=expired)
        finally:
            try:
                lock.unwind()
            finally:
                lock.unwind()

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
        while not is_true():
            now = time.monotonic()
            if deadline is not None and now >= deadline:
                return False
            ticket = expired = False
            # What is waited for may come while somebody who is stopped has the lock.
            until = now + SLICE_SECONDS
            try:
                lock.refuse_reentry()
                try:
                    if not lock.acquire(until if deadline is None else min(deadline, until)):
                        continue
                    self.enter()
                    ticket = True
                finally:
                    try:
                        lock.unwind()
                    finally:
                        lock.unwind()
                if not is_true():
                    ticket = expired = not self.sleep(deadline)
                    if not expired and woken is not None:
                        woken()
            finally:
                if ticket:
                    self.give_up(lock, expired=expired)
        return True

    def sleep(self, deadline: float | None) -> bool:
        """Wait for a token: until one comes (True), the slice is over or the deadline has passed (False)."""
        if deadline is None:
            return self.tokens.acquire(True, SLICE_SECONDS)
        return self.tokens.acquire(True, min(SLICE_SECONDS, max(deadline - time.monotonic(), 0.0)))

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
        sleepers, words, lock = self._sleepers, self._words, self._lock
        lock.refuse_reentry()
        try:
            if not lock.acquire_if_open(time.monotonic() + PATIENCE_SECONDS):
                return -1
            slept = words[sleepers.slept_at]
            due = sleepers.due(number)
            quiet = slept if words[sleepers.posted_at] >= slept else -1
        finally:
            try:
                lock.unwind()
            finally:
                lock.unwind()
        sleepers.post(due)
        return quiet

    def pass_on(self) -> None:
        """Wake one more, if any sleep: for whoever a token has woken and leaves something for others."""
        if self._sleepers.waiting():
            self.wake(1)
