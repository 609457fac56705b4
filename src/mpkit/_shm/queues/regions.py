"""The table of regions: stretches of a queue's file that contain rings and big items.

Each entry is one cache line::

    word 0   state
    word 1   serial: the generation of a ring, the number in the queue of a big item; while a big item is
             being written, a number that its writer has chosen
    word 2   place: its offset in the file and its size, in one word, so that a process that looks without a
             lock while the region is remade sees the old place or the new one, never half of each
    word 3   how many bytes of the file, from its offset on, belong to it, if that is more than its size
    word 4   pid of the process that writes or holds it
    word 5   start time of that process
    word 6   how many bytes the item in it counts for `max_bytes`, besides its record
    word 7   not 0: never to be reused; stored by any process that has views, and checked last

The states, and when a region is free again (the table is changed under the putters' lock, except where
noted)::

    NONE      the entry has never been used
    FREE      may be reused; its pages are there
    DROPPED   free, and its pages were given back to the system: they must be reserved again before use
    RING      contains the ring of generation `serial`; free when that generation is over
    WRITING   a putter copies a big item into it; free when that putter is dead, or has given up
    QUEUED    contains item number `serial` of the queue. This is stored just before the item is published,
              so if its number is not in the queue, it was never published, and the region is free
    HELD      a getter has views of it. This is stored under the getters' lock just before the item is taken.
              Free when the last view goes (one store by the holder, no lock), or when the holder is dead
              *and* the item has been taken
    LENT      its holder has forked while it had views, so a child has them, too (see `borrowers`). It becomes
              LEFT when the holder's last view goes (one store, no lock)
    LEFT      free when no child has views any more; so is LENT when its holder is dead
    PINNED    its holder has forked, and it cannot be known who has views: never reused (word 7 is set, too)

This module contains the table, and what processes do with the entry of a region that they use.
`region_supply` finds regions for putters, and reclaims those of the dead.
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
#: How many mappings are kept for the next use. On some Pythons each has a descriptor, of which a process may
#: have only about a thousand.
MOST_MAPS = 64 if MAP_HAS_DESCRIPTOR else 256
NONE, FREE, DROPPED, RING, WRITING, QUEUED, HELD, PINNED, LENT, LEFT = range(10)

#: The offsets of the other words of an entry from its state.
SERIAL, PLACE, OWN, PID, STARTED, USED, KEPT = range(1, 8)

#: How many bits of a place are the size in pages (with pages of 4 KiB: up to 4 TiB, in a file of up to 64
#: TiB).
_PAGES_BITS: Final = 30
_PAGES_MASK: Final = (1 << _PAGES_BITS) - 1


def place_at(offset: int, size: int) -> int:
    """The place of `size` bytes at `offset`; both are multiples of the page size."""
    return offset // PAGE << _PAGES_BITS | size // PAGE


def offset_of(place: int) -> int:
    """The offset of a place in the file, in bytes."""
    return (place >> _PAGES_BITS) * PAGE


def size_of(place: int) -> int:
    """The size of a place, in bytes."""
    return (place & _PAGES_MASK) * PAGE


class Regions:
    """The table of regions of one segment, as one process sees it.

    Args:
        segment: the segment; its file grows.
        start: index of the table's first word.
        capacity: how many entries there are.
        borrowers: the table of loans; None in a process that only looks.
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
        # The place and the mapping of each region that was mapped.
        self._maps: dict[int, tuple[int, mmap.mmap]] = {}

    # -- the table -------------------------------------------------------------------------------------------

    def at(self, number: int) -> int:
        """The index of an entry's first word, its state."""
        return self._start + number * ENTRY_WORDS

    def made(self) -> Iterator[tuple[int, int]]:
        """The number and first word of every entry that has ever been used (entries are used in order)."""
        for number in range(1, self.capacity):
            at = self._start + number * ENTRY_WORDS
            if self.words[at] == NONE:
                return
            yield number, at

    def mark(self, number: int, state: int, serial: int) -> None:
        """Set the state of a region, and enter this process as the one that uses it (under either lock)."""
        at = self.at(number)
        words = self.words
        me = identity.current()
        # The state is stored last. (When QUEUED becomes HELD, the process in the entry changes before the
        # state does; there the number of the item decides.)
        words[at + PID] = me.pid
        words[at + STARTED] = me.started
        words[at + SERIAL] = serial
        words[at] = state

    def queued_bytes(self, first: int, end: int) -> int:
        """How many bytes the big items with numbers from `first` to before `end` count."""
        words = self.words
        total, number = 0, (end - first) & COUNT_MASK
        # `made` in line, because with `max_bytes` each put calls this.
        for at in range(self.at(1), self.at(self.capacity), ENTRY_WORDS):
            state = words[at]
            if state == NONE:
                break
            if state in (QUEUED, HELD) and (words[at + SERIAL] - first) & COUNT_MASK < number:
                total += words[at + USED]
        return total

    # -- under the putters' lock -----------------------------------------------------------------------------

    def mark_queued(self, number: int, serial: int, used: int) -> None:
        """Before publishing the big item in this region.

        Args:
            number: of the region.
            serial: the number of the item in the queue.
            used: how many bytes the item counts for `max_bytes`, besides its record.
        """
        self.words[self.at(number) + USED] = used
        self.mark(number, QUEUED, serial)

    def free_unpublished_items(self, puts: int) -> None:
        """Free the regions that are QUEUED with a number not published yet."""
        words = self.words
        for _, at in self.made():
            if words[at] == QUEUED and (words[at + SERIAL] - puts) & COUNT_MASK < COUNT_MASK >> 1:
                words[at] = FREE

    def is_borrowed(self, state: int, number: int) -> bool:
        """Whether a forked child may have views of a region, whose state has been read before.

        (In this order, a loan that was made before the state was read is in the table, and a dead holder
        makes no further ones.)
        """
        if state not in (HELD, LENT, LEFT):
            return False
        return self._borrowers.has(number) if self._borrowers is not None else state != HELD

    # -- under the getters' lock -----------------------------------------------------------------------------

    def mark_held(self, number: int) -> int:
        """Before taking the item in this region; return the item's number."""
        serial = self.words[self.at(number) + SERIAL]
        self.mark(number, HELD, serial)
        return serial

    # -- without a lock --------------------------------------------------------------------------------------

    def free(self, number: int) -> None:
        """Free a region; by the process that uses it (one store)."""
        if not TOTAL_STORE_ORDER:
            # All reads from the region must be over before another process may write there.
            full_fence()
        self.words[self.at(number)] = FREE

    def free_unpublished(self, number: int, serial: int) -> None:
        """Free a region that was claimed as WRITING with this serial, unless it has been published since."""
        if self.words[self.at(number)] == WRITING and self._is_mine(number, serial):
            self.free(number)

    def is_held(self, number: int, serial: int) -> bool:
        """Whether this process holds the item with that serial in the region."""
        state = self.words[self.at(number)]
        return state in (HELD, LENT, PINNED) and self._is_mine(number, serial)

    def let_go(self, number: int, serial: int) -> None:
        """By the holder: record that it has no views of the item any more (one store).

        A second call does nothing.
        """
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

    def mark_lent(self, number: int) -> None:
        """By the holder: record that a child has, or is about to have, views, too (one store)."""
        at = self.at(number)
        if self.words[at] == HELD:
            self.words[at] = LENT

    def lend(self, numbers: Sequence[int]) -> list[int]:
        """Before a fork, in a process that has views of these regions: see `Borrowers.lend`."""
        if self._borrowers is None:
            return [0] * len(numbers)
        return self._borrowers.lend(numbers)

    def arrive(self, slot: int) -> None:
        """In a forked child: take over the loan in this slot."""
        if self._borrowers is not None:
            self._borrowers.arrive(slot)

    def give_back(self, slot: int) -> None:
        """In a forked child: end its loan, because it has no views any more, or never had (one store)."""
        if self._borrowers is not None:
            self._borrowers.give_back(slot)

    def pin(self, number: int) -> None:
        """By the holder: make sure that the region is never reused."""
        self.keep_for_ever(number)
        at = self.at(number)
        if self.words[at] in (HELD, LENT):
            self.words[at] = PINNED

    def keep_for_ever(self, number: int) -> None:
        """By any process with views: make sure that the region is never reused; its state is unchanged."""
        self.words[self.at(number) + KEPT] = 1

    def _is_mine(self, number: int, serial: int) -> bool:
        at = self.at(number)
        return self.words[at + SERIAL] == serial and self.words[at + PID] == os.getpid()

    def with_getters(self) -> int:
        """About how many regions getters have now (correctness does not depend on it)."""
        return sum(self.words[at] in (HELD, LENT, LEFT, PINNED) for _, at in self.made())

    def are_short(self) -> bool:
        """Whether getters have half of all regions, or more."""
        # A quick check, as long as half of the entries have never been used.
        half = self.capacity >> 1
        return self.words[self.at(half)] != NONE and self.with_getters() >= half

    # -- mappings --------------------------------------------------------------------------------------------

    def map(self, number: int) -> mmap.mmap:
        """This process's mapping of a region. It is valid until the region is remade.

        Raises:
            SharedMemoryExhausted: this process may not map more.
            ClosedError: this process has closed the queue.
        """
        place = self.words[self.at(number) + PLACE]
        known = self._maps.get(number)
        if known is not None and known[0] == place:
            return known[1]
        mapped = self._map_open(place)
        # If two threads come here at the same time, both mappings are valid, and one is kept.
        self._maps[number] = place, mapped
        for oldest in list(self._maps)[:-MOST_MAPS]:
            self._maps.pop(oldest, None)
        return mapped

    def _map_open(self, place: int) -> mmap.mmap:
        fd = self.segment.fd
        # With -1 as its descriptor, this would map memory of this process alone.
        self.check_open(fd)
        try:
            mapped = self._map(fd, place)
        except (OSError, ValueError) as error:
            self.check_open(fd)
            if isinstance(error, OSError):
                raise exhausted(error, size_of(place)) from error
            raise
        # If the queue was closed meanwhile, another file with the same descriptor may have been mapped.
        self.check_open(fd)
        return mapped

    def _map(self, fd: int, place: int) -> mmap.mmap:
        try:
            return map_file(fd, size_of(place), offset_of(place))
        except OSError as error:
            if not identity.is_lack_of_means(error):
                raise
        # Dropping unused mappings frees descriptors and address space.
        self._maps.clear()
        return map_file(fd, size_of(place), offset_of(place))

    def check_open(self, fd: int) -> None:
        """Raise ClosedError unless `fd` is still the descriptor of the queue's file.

        (If another thread has closed the queue, the number may belong to another file by now.)
        """
        if fd < 0 or self.segment.fd != fd:
            raise ClosedError("this queue is closed in this process")

    def close(self) -> None:
        """Drop all mappings; a mapping with views stays until the last of them goes."""
        self._maps = {}
