"""The table of loans: which forked children still have views of a big item that their parent received.

A forked child has every view that its parent has, and a region must not be reused before its last view is
gone, in whichever process. So a process that forks while it has views enters one *loan* for each region into
this table, which is in the queue's file::

    word 0   the region; 0: this slot is free
    word 1   the pid of the borrower; 0: the child that is just being forked
    word 2   its start time

The parent fills a slot before the fork, under the getters' lock. The child enters itself right after the
fork, and frees the slot, without a lock, when its last view goes. A child that forks in turn does the same,
with loans of its own. A region that has been lent is free when the parent is done with it and no slot names
it, except slots of dead processes.

- A loan is for one region in one child: four children of a process that has views of thirty regions take 120
  slots.
- A child that is killed between the fork and its entry leaves a slot that stays taken, and with it the
  region, until the queue ends. So does a fork that the system refuses.
- A child that has to lend a region on, but cannot, marks it as never to be reused (word 7 of its entry in the
  table of regions; the state is the parent's to change).
- A slot of a dead process may be taken for the next loan, under the same lock.
- A putter that looks whether a region is lent does not have the getters' lock. It reads the number of loans
  ever made, the table, and the number again. If a child has lent the region on to a child of its own
  meanwhile, and given back its own loan before the look came to that slot, the number has changed.

When no slot is free, or the lock is not to be had soon, the region is pinned instead: it is never reused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit.errors import MpkitError

SLOT_WORDS = 3
_PID, _STARTED = 1, 2
#: How long a fork waits for the getters' lock at most.
_LOCK_SECONDS = 0.05
#: How often `has` reads the table before it gives up, because the number of loans keeps changing.
_LOOKS = 3


class Borrowers:
    """The table of loans, seen from one process.

    Args:
        words: the segment.
        start: index of the table's first word.
        capacity: how many slots there are.
        loans_at: the word that counts loans.
        lock: the getters' lock.
    """

    __slots__ = ("_loans_at", "_lock", "_slots", "_words")

    def __init__(
        self, words: memoryview[int], *, start: int, capacity: int, loans_at: int, lock: RobustLock
    ) -> None:
        self._words = words
        self._slots = range(start, start + capacity * SLOT_WORDS, SLOT_WORDS)
        self._loans_at = loans_at
        self._lock = lock

    def lend(self, regions: Sequence[int]) -> list[int]:
        """Before a fork, in a process that has views of these regions: make a loan for each.

        Returns:
            The child's slot for each region; 0 where there is none.

        Blocking: for 50 ms at most.
        """
        slots = None
        # RuntimeError: a signal handler forks in the middle of a get. The others: the lock cannot be used (no
        # descriptors or memory left, or the queue is closed).
        with contextlib.suppress(RuntimeError, OSError, MpkitError):
            slots = self._lock.run(CLOCK.monotonic() + _LOCK_SECONDS, self._lend_each, regions)
        return slots or [0] * len(regions)

    def _lend_each(self, regions: Sequence[int]) -> list[int]:
        return [self._lend(region) for region in regions]

    def _lend(self, region: int) -> int:
        words = self._words
        at = next(self._usable(), 0)
        if at:
            # It is freed first, in case it is a dead process's. It names the region only after it says "being
            # forked".
            words[at] = 0
            full_fence()
            words[at + _PID] = 0
            full_fence()
            words[at] = region
            full_fence()
            words[self._loans_at] += 1
        return at

    def _usable(self) -> Iterator[int]:
        words = self._words
        yield from (at for at in self._slots if not words[at])
        yield from (at for at in self._slots if words[at + _PID] and not self._is_owner_alive(at))

    def arrive(self, at: int) -> None:
        """In the child: enter this process as the borrower."""
        me = identity.current()
        self._words[at + _STARTED] = me.started
        full_fence()
        self._words[at + _PID] = me.pid

    def give_back(self, at: int) -> None:
        """Free the slot, because this process's last view is gone (one store)."""
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._words[at] = 0

    def has(self, region: int) -> bool:
        """Whether a child has views of the region; also True when that is not certain."""
        words = self._words
        for _ in range(_LOOKS):
            loans = words[self._loans_at]
            if not TOTAL_STORE_ORDER:
                full_fence()
            for at in self._slots:
                if words[at] == region and (not words[at + _PID] or self._is_owner_alive(at)):
                    return True
            if not TOTAL_STORE_ORDER:
                full_fence()
            if words[self._loans_at] == loans:
                return False
        return True

    def _is_owner_alive(self, at: int) -> bool:
        words = self._words
        pid = words[at + _PID]
        if not TOTAL_STORE_ORDER:
            full_fence()
        return identity.is_alive(ProcessIdentity(pid, words[at + _STARTED]))
