"""Stretches of a queue's file, for rings and big items: the table of them.

Each entry is one cache line::

    word 0   state
    word 1   serial: of a ring its generation, of a big item its number in the queue; while it is
             written, a number that its writer has made up
    word 2   place: where it lies in the file and its size, in one word: whoever looks without a lock while a
             region is given another one sees the old place or the new one, never half of each
    word 3   so many bytes of the file, from its offset on, are its own: as many as its size, if that is more
    word 4   pid of the process that writes it or holds it
    word 5   start time of that process
    word 6   bytes of it that are in use
    word 7   not 0: never to be used again; stored by anybody who has views, and looked at last

States, and who may leave them (the table is changed under the putters' lock, except where said)::

    NONE      never made
    FREE      to be used again; its pages are there
    DROPPED   free, and its pages given back to the system: to be reserved again before use
    RING      records of generation `serial`; free when that generation is over
    WRITING   a putter copies a big item into it; free when that putter is dead, or knows of it no more
    QUEUED    the queue's item number `serial` lies in it; stored just before that item is published, so
              one whose number is not in the queue was never published: free
    HELD      a getter has views of it; stored under the getters' lock just before the item is taken. Free
              when the last view goes (one store by the holder, no lock), or when the holder is dead *and*
              the item has been taken
    LENT      its holder was forked while it had views: the child has them too, see `borrowers`. LEFT when
              the holder's last view goes (one store, no lock)
    LEFT      free when no child has it any more, as is LENT when its holder is dead
    PINNED    forked, and not to be told who has views: never used again (word 7 says so as well)

Here is the table, and what those do with an entry who have its region; `region_supply` finds regions for
putters, and takes back those of the dead.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Sequence
from typing import Final

from mpkit._platform.files.file_maps import MAP_HAS_DESCRIPTOR, map_file
from mpkit._platform.processes import identity
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.memory.segment import PAGE, Segment, exhausted
from mpkit._shm.queues.borrowers import Borrowers
from mpkit._shm.queues.ring import COUNT_MASK
from mpkit.errors import ClosedError

ENTRY_WORDS = 8
#: So many mappings are kept for the next use: a process has some thousand descriptors, and other needs.
MOST_MAPS = 64 if MAP_HAS_DESCRIPTOR else 256
NONE, FREE, DROPPED, RING, WRITING, QUEUED, HELD, PINNED, LENT, LEFT = range(10)

#: The words of an entry, from that of the state on.
SERIAL, PLACE, OWN, PID, STARTED, USED, KEPT = range(1, 8)

#: Regions of four terabytes, in files of sixty-four.
_PAGES_BITS: Final = 30
_PAGES_MASK: Final = (1 << _PAGES_BITS) - 1


def place_at(offset: int, size: int) -> int:
    """The place of `size` bytes at `offset`; both are whole pages."""
    return offset // PAGE << _PAGES_BITS | size // PAGE


def offset_of(place: int) -> int:
    """Where in the file the place begins, in bytes."""
    return (place >> _PAGES_BITS) * PAGE


def size_of(place: int) -> int:
    """How many bytes it has."""
    return (place & _PAGES_MASK) * PAGE


class Regions:
    """The table of regions of one segment, seen from one process.

    Args:
        segment: the segment; its file grows.
        start: index of the table's first word.
        capacity: how many entries there are.
        borrowers: the table of those that were forked with views; None for who only looks.
    """

    __slots__ = ("_borrowers", "_maps", "_start", "capacity", "segment", "words")

    def __init__(
        self,
        segment: Segment,
        *,
        start: int,
        capacity: int,
        borrowers: Borrowers | None = None,
    ) -> None:
        self.segment = segment
        self._borrowers = borrowers
        self.words = segment.words
        self._start = start
        self.capacity = capacity
        # With the place that each was made for.
        self._maps: dict[int, tuple[int, mmap.mmap]] = {}

    def mark_queued(self, number: int, serial: int, used: int) -> None:
        """The item number `serial` of the queue, `used` bytes long, is about to be published in this
        region.
        """
        self.words[self.at(number) + USED] = used
        self.mark(number, QUEUED, serial)

    def queued_bytes(self, first: int, end: int) -> int:
        """Bytes of the items numbered from `first` to before `end` that lie in regions."""
        words = self.words
        total, number = 0, (end - first) & COUNT_MASK
        # `made` in line: with `max_bytes` each put asks.
        for at in range(self.at(1), self.at(self.capacity), ENTRY_WORDS):
            state = words[at]
            if state == NONE:
                break
            if state in (QUEUED, HELD) and (words[at + SERIAL] - first) & COUNT_MASK < number:
                total += words[at + USED]
        return total

    # -- under the lock of the side that the state belongs to ------------------------------------------------

    def mark_held(self, number: int) -> int:
        """This process is about to take the item in this region (under the getters' lock): its number."""
        serial = self.words[self.at(number) + SERIAL]
        self.mark(number, HELD, serial)
        return serial

    # -- without a lock --------------------------------------------------------------------------------------

    def free(self, number: int) -> None:
        """One store by whoever has the region in his hands."""
        if not TOTAL_STORE_ORDER:
            # What was read there has been read before somebody else may write.
            full_fence()
        self.words[self.at(number)] = FREE

    def is_held(self, number: int, serial: int) -> bool:
        """Whether this process holds that item in the region."""
        state = self.words[self.at(number)]
        return state in (HELD, LENT, PINNED) and self._is_mine(number, serial)

    def free_unpublished(self, number: int, serial: int) -> None:
        """Free a region that was claimed as WRITING with this serial, unless it has been published since."""
        if self.words[self.at(number)] == WRITING and self._is_mine(number, serial):
            self.free(number)

    def free_unpublished_items(self, puts: int) -> None:
        """Free what is QUEUED with a number that has not been published (under the putters' lock)."""
        words = self.words
        for _, at in self.made():
            if words[at] == QUEUED and (words[at + SERIAL] - puts) & COUNT_MASK < COUNT_MASK >> 1:
                words[at] = FREE

    def lend(self, numbers: Sequence[int]) -> list[int]:
        """Who has views of these regions is about to fork: the child's slots, as of `Borrowers.lend`."""
        if self._borrowers is None:
            return [0] * len(numbers)
        return self._borrowers.lend(numbers)

    def mark_lent(self, number: int) -> None:
        """By the holder: a child has, or is about to have, views as well (one store)."""
        at = self.at(number)
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
        """By the holder: it has no view of that item any more (one store). A second time it does nothing."""
        if not self._is_mine(number, serial):
            return
        at = self.at(number)
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
        at = self.at(number)
        if self.words[at] in (HELD, LENT):
            self.words[at] = PINNED

    def keep_for_ever(self, number: int) -> None:
        """The same by a child of a fork, which does not touch the state (one store; nobody takes it back)."""
        self.words[self.at(number) + KEPT] = 1

    def with_getters(self) -> int:
        """How many regions are with getters now (a count for a decision of economy, not for correctness)."""
        return sum(self.words[at] in (HELD, LENT, LEFT, PINNED) for _, at in self.made())

    def are_short(self) -> bool:
        """Whether getters have half of all regions, or more."""
        # One look tells as long as there have never been so many.
        half = self.capacity >> 1
        return self.words[self.at(half)] != NONE and self.with_getters() >= half

    def map(self, number: int) -> mmap.mmap:
        """This process's mapping of a region, as long as that stays in its place."""
        place = self.words[self.at(number) + PLACE]
        known = self._maps.get(number)
        if known is not None and known[0] == place:
            return known[1]
        mapped = self._map_open(place)
        # Two threads may come here at once: both mappings are good, one stays.
        self._maps[number] = place, mapped
        for oldest in list(self._maps)[:-MOST_MAPS]:
            self._maps.pop(oldest, None)
        return mapped

    def close(self) -> None:
        """Let go of all mappings; those that somebody still has views of go with their last view."""
        self._maps = {}

    # -- inside ----------------------------------------------------------------------------------------------

    def at(self, number: int) -> int:
        """Index of an entry's first word, that of its state."""
        return self._start + number * ENTRY_WORDS

    def made(self) -> Iterator[tuple[int, int]]:
        """Number and first word of every entry that has ever been used; they are taken into use in order."""
        for number in range(1, self.capacity):
            at = self._start + number * ENTRY_WORDS
            if self.words[at] == NONE:
                return
            yield number, at

    def _map_open(self, place: int) -> mmap.mmap:
        fd = self.segment.fd
        # Without a file it would be memory of this process's own.
        self.check_open(fd)
        try:
            mapped = self._map(fd, place)
        except (OSError, ValueError) as error:
            self.check_open(fd)
            if isinstance(error, OSError):
                raise exhausted(error, size_of(place)) from error
            raise
        # Else it may be another file that has been mapped.
        self.check_open(fd)
        return mapped

    def check_open(self, fd: int) -> None:
        """Raise ClosedError unless `fd` is still the file's: another thread may have closed it, and have
        opened another by that number.
        """
        if fd < 0 or self.segment.fd != fd:
            raise ClosedError("this queue is closed in this process")

    def _map(self, fd: int, place: int) -> mmap.mmap:
        try:
            return map_file(fd, size_of(place), offset_of(place))
        except OSError as error:
            if not identity.is_lack_of_means(error):
                raise
        # Those that nobody uses go at once, and give back what is missing.
        self._maps.clear()
        return map_file(fd, size_of(place), offset_of(place))

    def _is_mine(self, number: int, serial: int) -> bool:
        at = self.at(number)
        return self.words[at + SERIAL] == serial and self.words[at + PID] == os.getpid()

    def mark(self, number: int, state: int, serial: int) -> None:
        at = self.at(number)
        words = self.words
        me = identity.current()
        # The state last for a new use; for QUEUED and HELD the process changes hands while the item's number
        # stays the truth.
        words[at + PID] = me.pid
        words[at + STARTED] = me.started
        words[at + SERIAL] = serial
        words[at] = state

    def is_borrowed(self, state: int, number: int) -> bool:
        # After the state: what has been lent by then is in the table, and a dead holder lends nothing more.
        if state not in (HELD, LENT, LEFT):
            return False
        return self._borrowers.has(number) if self._borrowers is not None else state != HELD
