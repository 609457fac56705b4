"""Which forked children still have views of a big item that their parent received.

A child of a fork has every view that its parent has, and the region that they show must not be used again
before the last of them has gone, in whichever process. So whoever forks while it has views enters one *loan*
for each region into this table, which lies in the queue's segment::

    word 0   the region; 0: this slot is free
    word 1   the pid of who has it; 0: the child that is just being forked
    word 2   when that process started

The parent fills a slot before the fork, under the getters' lock; the child enters itself right after it, and
frees the slot when its last view goes, without a lock. A child forks in the same way, with loans of
its own. What has been lent is free when the parent is done with it and no slot names it, but for those of the
dead.

- A loan is one region in one child: four children of a process that has thirty regions take 120 slots.
- Killed between the fork and its entry, a child leaves a slot that stays taken, and the region with it, until
  the queue ends. So does a fork that the system refuses.
- A child that wants to lend on and cannot marks the region as never to be used again (word 7 of its entry;
  the state is the parent's to change).
- A slot whose owner is dead is taken for the next loan, under the same lock.
- Whoever looks (a putter) does not have the getters' lock. It reads how many loans there have been, the
  table, and the number again: had a child lent on to a child of its own meanwhile, and given its own back
  before the look came to it, the number would have changed.

When no slot is free, or the lock is not to be had soon, the region is pinned instead: never used again.
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
#: A fork is not held up for longer.
_LOCK_SECONDS = 0.05
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
        """Before a fork, by who has views of these regions: the child's slot for each; 0 where there is none.

        Blocking: for 50 ms at most.
        """
        slots = None
        # RuntimeError: a fork in a signal handler, in the middle of a get. Else no means to take part in it.
        with contextlib.suppress(RuntimeError, OSError, MpkitError):
            slots = self._lock.run(CLOCK.monotonic() + _LOCK_SECONDS, self._lend_each, regions)
        return slots or [0] * len(regions)

    def _lend_each(self, regions: Sequence[int]) -> list[int]:
        return [self._lend(region) for region in regions]

    def _lend(self, region: int) -> int:
        words = self._words
        at = next(self._usable(), 0)
        if at:
            # Named only when it says "being forked": until then it is free, or a dead process's.
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
        """In the child: the slot is this process's."""
        me = identity.current()
        self._words[at + _STARTED] = me.started
        full_fence()
        self._words[at + _PID] = me.pid

    def give_back(self, at: int) -> None:
        """The slot is free again: this process's last view has gone (one store)."""
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._words[at] = 0

    def has(self, region: int) -> bool:
        """Whether a child may have views of the region. True, too, when that cannot be told for sure."""
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
