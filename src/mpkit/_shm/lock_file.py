"""The state of a lock that knows its owner: who has it, guarded by a robust lock of its own.

The truth is the word ``OWNER``: 0, or the identity of the process that has the lock, in one word so that one
store hands it over. Every change of it happens under the robust lock, for some hundred nanoseconds; so
whoever dies, dies with the lock (then its next taker finds a dead owner) or in the few instructions around it
(then the robust lock is taken over, and the word is as the last store left it).
"""

from __future__ import annotations

import time
from typing import ClassVar

from mpkit._platform import identity
from mpkit._platform.identity import ProcessIdentity
from mpkit._shm.robust_lock import LOW, PATIENCE_SECONDS
from mpkit._shm.rows import ROW_WORDS
from mpkit._shm.segment import Segment
from mpkit._shm.semaphore import MAX_VALUE, Semaphore
from mpkit._shm.shared_object import MAGIC_BASE, Form, SharedObject
from mpkit._shm.sleepers import FIRST_TICKET, Sleepers
from mpkit._shm.spin import SpinBudget

OWNER = 8
SLEPT = 9
POSTED = 10
_ROWS_AT = 512
_ROW_SLOTS = 4096
# An identity in one word: pids end below 2**22 everywhere, and 42 bits of the start time are enough to tell
# two of them apart.
_PID_BITS = 22
_START_MASK = (1 << 42) - 1


class LockFile(SharedObject):
    """One lock as this process has it open."""

    __slots__ = ("_me", "_quiet", "_sleepers", "_spin", "abandoned_by", "guard")

    form: ClassVar[Form] = Form(
        kind="lock",
        magic=MAGIC_BASE | 0x4C,
        file_bytes=(_ROWS_AT + _ROW_SLOTS * ROW_WORDS) * 8,
        reserved_bytes=_ROWS_AT * 8,
        rows_at=_ROWS_AT,
        rows_capacity=_ROW_SLOTS,
        semaphores=((1, 1), (0, MAX_VALUE)),
        locks=1,
        noun="lock",
    )

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        self.guard = self.locks[0]
        self._sleepers = Sleepers(self.words, slept_at=SLEPT, posted_at=POSTED, tokens=semaphores[1])
        self._spin = SpinBudget()
        self._me = _word_of(identity.current())
        # The value of SLEPT at which nobody is known to sleep.
        self._quiet = -1
        #: Pid of the dead process that the present owner, if it is this process, took the lock over from.
        self.abandoned_by: int | None = None

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:  # noqa: ARG003  a lock has none
        words[SLEPT] = words[POSTED] = FIRST_TICKET

    def forget_after_fork(self) -> None:
        super().forget_after_fork()
        self._me = _word_of(identity.current())
        self.abandoned_by = None

    def acquire(self, block: bool, deadline: float | None) -> bool:
        """Become the owner, waiting until `deadline` if `block`."""
        guard = self.guard
        done = False
        # The body of RobustLock.try_acquire and release in line, for the common case.
        try:
            if guard.local_acquire(False):
                words, value = self.words, guard.value
                words[guard.at] = value + 1
                if guard.permit_acquire(False):
                    if words[OWNER] == 0:
                        # First: an exception from here on (Ctrl-C) gives the lock back.
                        done = True
                        words[OWNER] = self._me
                        self.abandoned_by = None
                    guard.permit_release()
                    guard.value = words[guard.at] = (value | LOW) + 1
                else:
                    guard.value = words[guard.at] = value + 2
                guard.local_release()
        except BaseException:
            if done:
                self._give_back()
            guard.unwind()
            raise
        return done or self._acquire_slowly(block, deadline)

    def release(self) -> bool:
        """Free the lock, whoever owns it; False when nobody does."""
        guard = self.guard
        # In line as in `acquire`. Sleepers take the slow way, which promises a token under the guard.
        try:
            if guard.local_acquire(False):
                words, value = self.words, guard.value
                words[guard.at] = value + 1
                done = False
                if guard.permit_acquire(False):
                    if words[SLEPT] == self._quiet and words[OWNER]:
                        words[OWNER] = 0
                        done = True
                    guard.permit_release()
                    guard.value = words[guard.at] = (value | LOW) + 1
                else:
                    guard.value = words[guard.at] = value + 2
                guard.local_release()
                if done:
                    return True
        except BaseException:
            try:
                guard.unwind()
            finally:
                guard.unwind()
            raise
        return self._release_slowly()

    def owner(self) -> int | None:
        """Pid of the owner."""
        return self.words[OWNER] & ((1 << _PID_BITS) - 1) or None

    def _give_back(self) -> None:
        """An exception has come after this thread became the owner: nobody is going to release the lock."""
        if self.guard.held_here():
            self.words[OWNER] = 0
        else:
            self._release_slowly()

    def _release_slowly(self) -> bool:
        guard = self.guard
        due = 0
        guard.refuse_reentry()
        try:
            # Nobody keeps the guard; should a stopped process have it, waiting is right: the caller does own
            # the lock.
            guard.acquire(None)
            words = self.words
            if words[OWNER] == 0:
                return False
            words[OWNER] = 0
            slept = words[SLEPT]
            # One token at a time: a sleeper that has one is about to look, and so will the next one after it.
            if self._sleepers.tokens.raw._is_zero():
                due = self._sleepers.due(1)
            self._quiet = slept if words[POSTED] >= slept else -1
        finally:
            try:
                guard.unwind()
            finally:
                guard.unwind()
        self._sleepers.post(due)
        return True

    def _acquire_slowly(self, block: bool, deadline: float | None) -> bool:
        guard, sleepers = self.guard, self._sleepers
        spun = ticket = looked = late = done = False
        try:
            while True:
                # Whoever waits asks once a slice: an owner that dies wakes nobody.
                dead = self._dead_owner() if late or not block else 0
                # The guard is held for microseconds: waiting for it is not waiting for the lock.
                patience = time.monotonic() + PATIENCE_SECONDS
                guard.refuse_reentry()
                try:
                    if not guard.acquire(
                        None if block and deadline is None else max(deadline or 0.0, patience)
                    ):
                        return False
                    done = self._take(dead)
                    if done and ticket:
                        sleepers.leave(expired=late)
                        ticket = False
                    elif not done and block and spun and not ticket:
                        sleepers.enter()
                        ticket, looked = True, False
                    elif not done and ticket and late and sleepers.renew():
                        looked = False
                finally:
                    try:
                        guard.unwind()
                    finally:
                        guard.unwind()
                if done:
                    return True
                if not block or (deadline is not None and time.monotonic() >= deadline):
                    return False
                if not spun:
                    self._spin_until_free()
                    spun = True
                elif not looked:
                    # Once more with the ticket taken: whoever releases from now on gives us a token (see
                    # sleepers).
                    looked = True
                elif self._spin.sleep(sleepers.sleep, deadline):
                    ticket = late = False
                else:
                    late = True
        except BaseException:
            if done:
                self._give_back()
            raise
        finally:
            if ticket:
                sleepers.give_up(guard, expired=late)

    def _take(self, dead: int) -> bool:
        """Under the guard: become the owner if there is none, or if it is still `dead`."""
        words = self.words
        owner = words[OWNER]
        if owner not in (0, dead):
            return False
        words[OWNER] = self._me
        self.abandoned_by = owner & ((1 << _PID_BITS) - 1) or None
        return True

    def _dead_owner(self) -> int:
        """The owner if it is dead, else 0. Not for use under the guard: asking the system takes long."""
        owner = self.words[OWNER]
        return owner if owner and not _is_alive(owner) else 0

    def _spin_until_free(self) -> None:
        words = self.words
        for _ in range(self._spin.looks):
            if words[OWNER] == 0:
                self._spin.paid()
                return
        self._spin.failed()


def _word_of(process: ProcessIdentity) -> int:
    return process.pid | (process.started & _START_MASK) << _PID_BITS


def _is_alive(word: int) -> bool:
    pid = word & ((1 << _PID_BITS) - 1)
    now = identity.of(pid)
    return now is not None and _word_of(now) == word and identity.is_alive(now)
