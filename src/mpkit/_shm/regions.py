"""Stretches of one segment's file that are handed out, recycled and given back: rings and big items.

Writing into fresh shared pages is some fifteen times slower than into pages that have been written before, so
a region that is free again is used again. The table of regions lies in the segment; the file grows at its end
when no free region fits. Each entry is one cache line::

    word 0   state
    word 1   serial: of a ring its generation, of a big item its number in the queue; while it is
             written, a number that its writer has made up
    word 2   offset in the file     } written once, when the region is made:
    word 3   size in bytes          } so a mapping of it is good for ever
    word 4   pid of the process that writes it or holds it
    word 5   start time of that process
    word 6   bytes of it that are in use
    word 7   not 0: never to be used again; stored by anybody who has views, and looked at last

States, and who may leave them (the table is changed under the putters' lock, except where said)::

    NONE      never made
    FREE      to be used again; its pages are there
    DROPPED   free, and its pages given back to the system: to be reserved again before use
    RING      records of generation `serial`; free when that generation is over
    WRITING   a putter copies a big item into it; free when that putter is dead
    QUEUED    the queue's item number `serial` lies in it; stored just before that item is published, so
              one whose number is not in the queue was never published: free
    HELD      a getter has views of it; stored under the getters' lock just before the item is taken. Free
              when the last view goes (one store by the holder, no lock), or when the holder is dead *and*
              the item has been taken
    LENT      its holder was forked while it had views: the child has them too, see `borrowers`. LEFT when
              the holder's last view goes (one store, no lock)
    LEFT      free when no child has it any more, as is LENT when its holder is dead
    PINNED    forked, and not to be told who has views: never used again (word 7 says so as well)
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from mpkit._platform import identity
from mpkit._platform.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.identity import ProcessIdentity
from mpkit._shm.borrowers import Borrowers
from mpkit._shm.segment import PAGE, Segment, exhausted, map_file, reserve, round_up
from mpkit.errors import ClosedError

ENTRY_WORDS = 8
#: Big items leave so many entries to the rings, without which nothing could be put.
KEPT_FOR_RINGS = 32
NONE, FREE, DROPPED, RING, WRITING, QUEUED, HELD, PINNED, LENT, LEFT = range(10)

#: Tells of (state, serial, process) whether that use of a region has ended.
IsOver: TypeAlias = "Callable[[int, int, ProcessIdentity], bool]"
#: Looks at what is in use now.
Look: TypeAlias = "Callable[[], IsOver]"

_STATE, _SERIAL, _OFFSET, _SIZE, _PID, _STARTED, _USED, _KEPT = range(8)


class Regions:
    """The table of regions of one segment, seen from one process.

    Args:
        segment: the segment; its file grows.
        start: index of the table's first word.
        capacity: how many entries there are.
        end_at: index of the word that holds where the file ends, in bytes.
        borrowers: the table of those that were forked with views; None for who only looks.
    """

    __slots__ = ("_borrowers", "_capacity", "_end_at", "_maps", "_segment", "_start", "words")

    def __init__(
        self,
        segment: Segment,
        *,
        start: int,
        capacity: int,
        end_at: int,
        borrowers: Borrowers | None = None,
    ) -> None:
        self._segment = segment
        self._borrowers = borrowers
        self.words = segment.words
        self._start = start
        self._capacity = capacity
        self._end_at = end_at
        self._maps: dict[int, mmap.mmap] = {}

    # -- under the putters' lock -----------------------------------------------------------------------------

    def claim(self, size: int, state: int, serial: int, look: Look) -> int:
        """Take a region of at least `size` bytes into `state` and return its number, or -1 when the table is
        full.

        Args:
            size: bytes.
            state: RING or WRITING.
            serial: what `word 1` of the entry holds for that state.
            look: called before the table is searched for what the dead have left behind.

        Raises:
            SharedMemoryExhausted: the file cannot grow; nothing has changed.
        """
        best = self._best_free(size, 2 * size + 16 * PAGE)
        if best < 0 and self._reclaim(look()):
            best = self._best_free(size, 2 * size + 16 * PAGE)
        if best < 0:
            unused = self._unused()
            if state == WRITING and unused > self._capacity - KEPT_FOR_RINGS:
                return -1
            if unused >= 0:
                best = self._grow(unused, _size_class(size), look)
            else:
                best = self._best_free(size, 1 << 62) if state == RING else -1
                if best < 0:
                    return -1
        self._reserve_again(best)
        self._mark(best, state, serial)
        return best

    def mark_queued(self, number: int, serial: int, used: int) -> None:
        """The item number `serial` of the queue, `used` bytes long, is about to be published in this
        region.
        """
        self.words[self._start + number * ENTRY_WORDS + _USED] = used
        self._mark(number, QUEUED, serial)

    def queued_bytes(self, first: int, end: int, mask: int) -> int:
        """Bytes of the items numbered from `first` to before `end` (modulo `mask` + 1) that lie in
        regions.
        """
        words = self.words
        total = 0
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            state = words[at]
            if state == NONE:
                break
            if state in (QUEUED, HELD) and (words[at + _SERIAL] - first) & mask < (end - first) & mask:
                total += words[at + _USED]
        return total

    def drop_free(self, look: Look) -> int:
        """Give the pages of every free region back to the system; returns how many bytes that were."""
        self._reclaim(look())
        given = 0
        words = self.words
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            if words[at] == FREE and words[at + _SIZE] > PAGE:
                # The state first: a kill in between leaves pages that are reserved once more, which is
                # harmless.
                words[at] = DROPPED
                remove = getattr(mmap, "MADV_REMOVE", None)
                if remove is not None:
                    # All but the first page: whoever looks at an old ring without a lock reads its head and
                    # tail there.
                    size = words[at + _SIZE]
                    self.map(number).madvise(remove, PAGE, size - PAGE)
                    given += size - PAGE
        return given

    # -- under the lock of the side that the state belongs to ------------------------------------------------

    def mark_held(self, number: int) -> int:
        """This process is about to take the item in this region (under the getters' lock): its number."""
        serial = self.words[self._start + number * ENTRY_WORDS + _SERIAL]
        self._mark(number, HELD, serial)
        return serial

    # -- without a lock --------------------------------------------------------------------------------------

    def free(self, number: int) -> None:
        """One store by whoever has the region in his hands."""
        if not TOTAL_STORE_ORDER:
            # What was read there has been read before somebody else may write.
            full_fence()
        self.words[self._start + number * ENTRY_WORDS] = FREE

    def free_held(self, number: int, serial: int) -> None:
        """Free a region whose item this process has taken, unless that has been done already."""
        if self.words[self._start + number * ENTRY_WORDS] == HELD and self._is_mine(number, serial):
            self.free(number)

    def is_held(self, number: int, serial: int) -> bool:
        """Whether this process holds that item in the region."""
        state = self.words[self._start + number * ENTRY_WORDS]
        return state in (HELD, LENT, PINNED) and self._is_mine(number, serial)

    def free_unpublished(self, number: int, serial: int) -> None:
        """Free a region that was claimed as WRITING with this serial, unless it has been published since."""
        if self.words[self._start + number * ENTRY_WORDS] == WRITING and self._is_mine(number, serial):
            self.free(number)

    def free_unpublished_items(self, puts: int, mask: int) -> None:
        """Free what is QUEUED with a number that has not been published (under the putters' lock)."""
        words = self.words
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            if words[at] == NONE:
                break
            if words[at] == QUEUED and (words[at + _SERIAL] - puts) & mask < mask >> 1:
                words[at] = FREE

    def lend(self, numbers: Sequence[int]) -> list[int]:
        """Who has views of these regions is about to fork: the child's slots, as of `Borrowers.lend`."""
        if self._borrowers is None:
            return [0] * len(numbers)
        return self._borrowers.lend(numbers)

    def mark_lent(self, number: int) -> None:
        """By the holder: a child has, or is about to have, views as well (one store)."""
        at = self._start + number * ENTRY_WORDS
        if self.words[at] == HELD:
            self.words[at] = LENT

    def arrive(self, slot: int) -> None:
        """In the child: it has what was lent to it."""
        if self._borrowers is not None:
            self._borrowers.arrive(slot)

    def give_back(self, slot: int) -> None:
        """By a child of a fork: its last view has gone, or it never had one (one store)."""
        if self._borrowers is not None:
            self._borrowers.give_back(slot)

    def let_go(self, number: int, serial: int) -> None:
        """By the holder: its last view of that item has gone (one store). A second time it does nothing."""
        if not self._is_mine(number, serial):
            return
        at = self._start + number * ENTRY_WORDS
        if not TOTAL_STORE_ORDER:
            full_fence()
        state = self.words[at]
        if state == HELD:
            self.words[at] = FREE
        elif state == LENT:
            self.words[at] = LEFT

    def pin(self, number: int) -> None:
        """By the holder: take the region out of use for ever."""
        self.keep_for_ever(number)
        at = self._start + number * ENTRY_WORDS
        if self.words[at] in (HELD, LENT):
            self.words[at] = PINNED

    def keep_for_ever(self, number: int) -> None:
        """The same by a child of a fork, which does not touch the state (one store; nobody takes it back)."""
        self.words[self._start + number * ENTRY_WORDS + _KEPT] = 1

    def with_getters(self) -> int:
        """How many regions are with getters now (a count for a decision of economy, not for correctness)."""
        words = self.words
        states = [words[self._start + number * ENTRY_WORDS] for number in range(1, self._capacity)]
        return sum(map(states.count, (HELD, LENT, LEFT, PINNED)))

    def are_short(self) -> bool:
        """Whether getters have half of all regions, or more."""
        # One look tells as long as there have never been so many.
        half = self._capacity >> 1
        return self.words[self._start + half * ENTRY_WORDS] != NONE and self.with_getters() >= half

    def map(self, number: int) -> mmap.mmap:
        """This process's mapping of a region; made once."""
        mapped = self._maps.get(number)
        if mapped is None:
            if self._segment.fd < 0:
                # Without a file it would be memory of this process's own.
                raise ClosedError("this queue is closed in this process")
            at = self._start + number * ENTRY_WORDS
            try:
                mapped = map_file(self._segment.fd, self.words[at + _SIZE], self.words[at + _OFFSET])
            except OSError as error:
                raise exhausted(error, self.words[at + _SIZE]) from error
            # Two threads may come here at once: both mappings are good, one stays.
            mapped = self._maps.setdefault(number, mapped)
        return mapped

    def close(self) -> None:
        """Let go of all mappings; those that somebody still has views of go with their last view."""
        self._maps = {}

    # -- inside ----------------------------------------------------------------------------------------------

    def _is_mine(self, number: int, serial: int) -> bool:
        at = self._start + number * ENTRY_WORDS
        return self.words[at + _SERIAL] == serial and self.words[at + _PID] == os.getpid()

    def _mark(self, number: int, state: int, serial: int) -> None:
        at = self._start + number * ENTRY_WORDS
        words = self.words
        me = identity.current()
        # The state last for a new use; for QUEUED and HELD the process changes hands while the item's number
        # stays the truth.
        words[at + _PID] = me.pid
        words[at + _STARTED] = me.started
        words[at + _SERIAL] = serial
        words[at] = state

    def _best_free(self, size: int, most: int) -> int:
        words = self.words
        best, best_size, best_state = -1, most + 1, DROPPED
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            state = words[at]
            if state == NONE:
                break
            if state in (FREE, DROPPED) and size <= words[at + _SIZE] <= most:
                has = words[at + _SIZE]
                # Pages that are there come before a closer fit.
                if (
                    best < 0
                    or (best_state == DROPPED and state == FREE)
                    or (state == best_state and has < best_size)
                ):
                    best, best_size, best_state = number, has, state
        return best

    def _unused(self) -> int:
        words = self.words
        for number in range(1, self._capacity):
            if words[self._start + number * ENTRY_WORDS] == NONE:
                return number
        return -1

    def _reclaim(self, is_over: IsOver) -> int:
        words = self.words
        freed = 0
        for number in range(1, self._capacity):
            at = self._start + number * ENTRY_WORDS
            state = words[at]
            if state == NONE:
                break
            if state in (RING, WRITING, QUEUED, HELD, LENT, LEFT):
                process = ProcessIdentity(words[at + _PID], words[at + _STARTED])
                if (
                    is_over(state, words[at + _SERIAL], process)
                    and not self._is_borrowed(state, number)
                    # HELD may turn FREE under our eyes, which changes nothing; or LENT, by one who dies then.
                    and words[at] == state
                    # Last: who keeps a region does it while the table or the state still tells of him.
                    and not words[at + _KEPT]
                ):
                    words[at] = FREE
                    freed += 1
        return freed

    def _is_borrowed(self, state: int, number: int) -> bool:
        # After the state: what has been lent by then is in the table, and a dead holder lends nothing more.
        if state not in (HELD, LENT, LEFT):
            return False
        return self._borrowers.has(number) if self._borrowers is not None else state != HELD

    def _grow(self, number: int, size: int, look: Look) -> int:
        words = self.words
        at = self._start + number * ENTRY_WORDS
        offset = words[self._end_at]
        if words[at + _SIZE] and words[at + _OFFSET] + words[at + _SIZE] == offset:
            # Somebody died when the file had grown and before the entry was used: the same stretch once more.
            offset = words[at + _OFFSET]
        try:
            reserve(self._segment.fd, offset, size)
        except OSError as error:
            os.ftruncate(self._segment.fd, offset)
            if self.drop_free(look):
                try:
                    reserve(self._segment.fd, offset, size)
                except OSError as again:
                    os.ftruncate(self._segment.fd, offset)
                    raise exhausted(again, size) from again
            else:
                raise exhausted(error, size) from error
        words[at + _OFFSET] = offset
        words[at + _SIZE] = size
        # A kill before this store leaves the file longer than it says; the next growth reserves the same
        # bytes again.
        words[self._end_at] = offset + size
        return number

    def _reserve_again(self, number: int) -> None:
        at = self._start + number * ENTRY_WORDS
        words = self.words
        if words[at] == DROPPED:
            try:
                reserve(self._segment.fd, words[at + _OFFSET], words[at + _SIZE])
            except OSError as error:
                raise exhausted(error, words[at + _SIZE]) from error
            words[at] = FREE


def _size_class(size: int) -> int:
    """Round up to eighths of a power of two, so that items of about one size share regions."""
    step = max(PAGE, 1 << max(size.bit_length() - 3, 0))
    return round_up(size, step)
