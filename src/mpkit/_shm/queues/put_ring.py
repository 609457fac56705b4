"""The ring that putters write into, as one process knows it: what happens under their lock.

Where a record goes, what is known of the room behind it, and the next, larger ring when there is none.
Nothing here takes a lock, waits or wakes anybody; that is for `put_side`.
"""

from __future__ import annotations

import contextlib
import mmap
import sys
from collections.abc import Sequence
from typing import Final

from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.queues import records
from mpkit._shm.queues.layout import (
    GENERATION_MASK,
    GENERATION_SLOTS,
    GET_GENERATION,
    PUT_GENERATION,
    RING_HEAD,
    RING_RECORDS,
    RING_TAIL,
    RING_WRAPPED_AT,
    SHUT_DOWN,
)
from mpkit._shm.queues.queue_file import QueueFile
from mpkit._shm.queues.records import BIG, PACK, PACK_BITS
from mpkit._shm.queues.regions import RING, WRITING
from mpkit._shm.queues.ring import COUNT_LIMIT, COUNT_MASK, INDEX_BITS, INDEX_MASK, ONE, WRAP
from mpkit.errors import QueueShutDown, SharedMemoryExhausted

#: A new ring is this many times as large as the one before, and twice from `SLOWER_GROWTH` on, up to
#: `LARGEST_RING`.
GROWTH: Final = 4
SLOWER_GROWTH: Final = 16 * 1024 * 1024
LARGEST_RING: Final = 256 * 1024 * 1024
#: The most words for records that a ring can have, if an item needs them: half a gigabyte.
_MOST_WORDS: Final = INDEX_MASK - RING_RECORDS - 1
#: Results of `tail_for` that are no tail: the bounds let nothing in; there is no room in this ring.
FULL: Final = -1
GROW: Final = -2
#: More than anybody puts at once, and a small number.
_MANY: Final = 1 << 20
#: A tail near the end of the counts.
_LATE: Final = COUNT_LIMIT - (_MANY << (INDEX_BITS + 2))
_BYTE_ORDER: Final = sys.byteorder
_PADDING: Final = tuple(bytes(number) for number in range(8))


class PutRing:
    """Where the next record goes, and how it gets there; every thread of the process uses this one object.

    Attributes:
        generation: of the ring that the next ones tell of; -1: none yet.
        words: its words.
        mm: the same bytes, and more.
        base: offset in `mm` of the first record's length word.
        tail: as long as the ring's own tail is this one, the next two hold (getters only ever make room).
        room: words free in one piece behind it.
        left: how many more items the bounds let in without another look.
    """

    __slots__ = (
        "_bounded",
        "_capacity",
        "_file",
        "_queue_words",
        "_weighed",
        "base",
        "generation",
        "left",
        "mm",
        "room",
        "tail",
        "words",
    )

    def __init__(self, file: QueueFile) -> None:
        self._file = file
        self._queue_words = file.words
        self._bounded = bool(file.maxsize or file.max_bytes)
        self._weighed = bool(file.max_bytes)
        self._capacity = 0
        self.generation: int = -1
        self.words: memoryview[int] = file.words
        self.mm: mmap.mmap = file.segment.mm
        self.base: int = 0
        self.tail: int = -1
        self.room: int = 0
        self.left: int = 0

    # -- putting ---------------------------------------------------------------------------------------------

    def put(self, data: bytes, flag: int) -> bool:
        """Put one record; False when the queue is full.

        Raises:
            QueueShutDown: the queue has been shut down.
            SharedMemoryExhausted: it needs a larger ring, for which there is no room.
        """
        while True:
            self._follow()
            size = len(data)
            length = (size + 15) >> 3
            tail = self.tail_for(
                self.words[RING_TAIL], length, records.weight(data) if flag == BIG else length << 3
            )
            if tail == FULL:
                return False
            if tail >= 0:
                break
            self._grow(length)
        ring = self.words
        index = tail & INDEX_MASK
        ring[RING_RECORDS + index] = size | flag
        at = self.base + (index << 3) + 8
        self.mm[at : at + size] = data
        if flag == BIG:
            # The record itself counts, too, as long as it is in the ring.
            self._file.regions.mark_queued(
                records.big_region(data), tail >> INDEX_BITS, records.weight(data) - (length << 3)
            )
        self._publish(tail, 1, length)
        return True

    def put_pack(self, data: bytes, number: int) -> bool:
        """Put a pack of `number` items; False when that needs more than room in this ring.

        Raises:
            QueueShutDown: the queue has been shut down.
        """
        self._follow()
        ring = self.words
        size = len(data) + 8
        length = (size + 15) >> 3
        tail = self.tail_for(ring[RING_TAIL], length, length << 3)
        if tail < 0 or self.left < number:
            return False
        index = tail & INDEX_MASK
        ring[RING_RECORDS + index] = size | PACK
        ring[RING_RECORDS + index + 1] = (tail >> INDEX_BITS) << PACK_BITS | number
        at = self.base + (index << 3) + 16
        self.mm[at : at + len(data)] = data
        self._publish(tail, number, length)
        return True

    def put_run(self, items: Sequence[bytes], start: int) -> int:
        """Put what fits into one piece of the ring, as one copy and one publication; returns how many items
        that were, possibly none.
        """
        if self._queue_words[PUT_GENERATION] != self.generation:
            return 0
        done = used = 0
        length = (len(items[start]) + 15) >> 3
        tail = self.tail_for(self.words[RING_TAIL], length, length << 3)
        if tail < 0:
            return 0
        room, left = self.room, self.left
        parts: list[bytes] = []
        for position in range(start, len(items)):
            data = items[position]
            size = len(data)
            length = (size + 15) >> 3
            if used + length > room or done >= left:
                break
            parts += (size.to_bytes(8, _BYTE_ORDER), data, _PADDING[-size & 7])
            used += length
            done += 1
        if done:
            at = self.base + ((tail & INDEX_MASK) << 3)
            self.mm[at : at + (used << 3)] = b"".join(parts)
            self._publish(tail, done, used)
        return done

    def tail_for(self, tail: int, length: int, weight: int) -> int:
        """Where a record goes, as a tail (the ring's own, or one whose index is the ring's start); else
        `FULL` or `GROW`.

        Notes in `room` and `left` what may be put from there on without asking again.

        Args:
            tail: the ring's tail.
            length: words of the record.
            weight: bytes that the item counts for `max_bytes`.
        """
        # First, and valid again only when all of it is known: an interrupt may come in between.
        self.tail = -1
        left = _MANY
        if self._bounded:
            # What others take while we look only makes room.
            left = self._allowance(tail, weight)
            if left <= 0:
                self.left = left
                return FULL
        if tail >= _LATE:
            # Near the end of the counts every put takes the slow way, which knows how to begin again at zero.
            left = min(left, (COUNT_LIMIT - tail) >> (INDEX_BITS + 2))
        self.left = left
        # With several putters almost every put comes here: numbers beyond 2**30, like head and tail, cost
        # three times as much as smaller ones, so they are used as little as can be.
        head = self.words[RING_HEAD]
        index, first = tail & INDEX_MASK, head & INDEX_MASK
        if index > first or tail == head:
            room = self._capacity - index
            if room < length:
                return self._begin_at_start(tail, index, index if tail == head else first, length)
        else:
            room = first - index
            if room < length:
                return GROW
        # With `max_bytes` every item asks again: what big items take is not in the ring.
        self.room = length if self._weighed else room
        return tail

    def claim(self, size: int, serial: int, *, if_room_for: int | None) -> int | None:
        """A region that is WRITING, for a big item of `size` bytes; -1 when there is none.

        Args:
            size: bytes.
            serial: that of its `Writing`.
            if_room_for: None when the bounds let no item of so many bytes in now.

        Raises:
            QueueShutDown: the queue has been shut down.
            SharedMemoryExhausted: there is no memory for it.
        """
        self._follow()
        if if_room_for is not None and self._is_full_for(if_room_for):
            return None
        return self._file.supply.claim(size, WRITING, serial)

    def refuse_further_puts(self) -> None:
        """Shut the queue down."""
        self._queue_words[PUT_GENERATION] |= SHUT_DOWN

    def trim(self) -> None:
        """Give memory back to the system that an empty queue does not need (holding both locks)."""
        file, words = self._file, self._queue_words
        first, last = words[GET_GENERATION], words[PUT_GENERATION] & GENERATION_MASK
        if first == last and file.generations.size() == 0:
            self._load(last)
            if self.base == RING_RECORDS << 3:
                # A grown ring: go on in the first one, whose generation is long over.
                self._begin(0, self.words[RING_TAIL])
                words[GET_GENERATION] = self.generation
        with contextlib.suppress(SharedMemoryExhausted):
            # A map that the system refuses can wait; the caller only wanted an item.
            file.supply.drop_free()

    def repair(self) -> None:
        """Free the regions of what was never published; whoever calls has the lock, or takes it over."""
        _, puts = self._file.generations.counts()
        self._file.regions.free_unpublished_items(puts)

    # -- looking, which needs no lock ------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether there is no room for any item, seen without the lock, so that nothing is pickled in vain.

        True: it was so at one moment during the call. False tells nothing: also where this process knew of
        room a while ago. For a queue with `maxsize`.
        """
        if self.left > 0:
            return False
        file, ring = self._file, self.words
        # A rough look first, at what may be no ring at all yet.
        if ((ring[RING_TAIL] >> INDEX_BITS) - (ring[RING_HEAD] >> INDEX_BITS)) & COUNT_MASK < file.maxsize:
            return False
        # Last what is for ever: the queue was full before that.
        return file.generations.size() >= file.maxsize and not self.is_shut_down and not file.closed

    @property
    def is_shut_down(self) -> bool:
        return self._queue_words[PUT_GENERATION] >= SHUT_DOWN

    def used_bytes(self) -> int:
        """What the queued items occupy: exact when nobody is at work, else from one moment to the next. Never
        blocks.
        """
        gets, puts, used = self._file.generations.snapshot()
        return used + self._file.regions.queued_bytes(gets, puts)

    # -- inside ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Know the ring that is current now.

        Raises:
            QueueShutDown: there is none any more.
        """
        generation = self._queue_words[PUT_GENERATION]
        if generation >= SHUT_DOWN:
            raise QueueShutDown("put into a queue that has been shut down")
        if generation != self.generation:
            self._load(generation)

    def _is_full_for(self, size: int) -> bool:
        """Whether the bounds let no big item of that size in."""
        if not self._bounded or self._allowance(self.words[RING_TAIL], records.weight_of(size)) > 0:
            return False
        # What was known of room is over.
        self.tail = -1
        self.left = 0
        return True

    def _publish(self, tail: int, number: int, length: int) -> None:
        """Put what has been written at `tail`: `number` items in `length` words."""
        tail += number * ONE + length
        if tail >= COUNT_LIMIT:
            tail -= COUNT_LIMIT
        self.room -= length
        self.left -= number
        self.tail = tail
        if not TOTAL_STORE_ORDER:
            full_fence()
        self.words[RING_TAIL] = tail

    def _begin_at_start(self, tail: int, index: int, other: int, length: int) -> int:
        """Where a record goes for which there is no room up to the end of the ring; `other` words are free at
        its start.
        """
        if other < length:
            return GROW
        ring = self.words
        if index < self._capacity:
            ring[RING_RECORDS + index] = WRAP
        ring[RING_WRAPPED_AT] = index
        self.room = length if self._weighed else other
        return tail - index

    def _allowance(self, tail: int, weight: int) -> int:
        """How many items `maxsize` and `max_bytes` let in behind `tail`, at most `_MANY`."""
        file = self._file
        left = _MANY
        if file.maxsize:
            generation = self._queue_words[GET_GENERATION]
            # Getters may go on to the next generation while we look: what we then see was true before, and
            # they only make room.
            head = (
                self.words[RING_HEAD]
                if generation == self.generation
                else file.generations.view(generation).words[RING_HEAD]
            )
            left = min(left, file.maxsize - (((tail >> INDEX_BITS) - (head >> INDEX_BITS)) & COUNT_MASK))
        if left > 0 and self._weighed:
            used = self.used_bytes()
            if used and used + weight > file.max_bytes:
                return 0
        return left

    def _load(self, generation: int) -> None:
        ring = self._file.generations.view(generation)
        self.words, self.mm, self.base = ring.words, ring.mm, ring.base
        self._capacity = ring.capacity
        self.tail = -1
        self.room = self.left = 0
        self.generation = generation

    def _grow(self, length: int) -> None:
        """Begin a new generation in a larger ring."""
        if length > _MOST_WORDS:
            # Else one ring after the other would be made, and none be large enough.
            raise SharedMemoryExhausted(
                f"this queue and its receivers hold too many big items: there is no separate memory left for "
                f"one of {length << 3} bytes, and the memory for small ones takes {_MOST_WORDS << 3} at most"
            )
        generation = self.generation + 1
        if generation - self._queue_words[GET_GENERATION] >= GENERATION_SLOTS:
            raise SharedMemoryExhausted(
                f"this queue fills {GENERATION_SLOTS} rings of {LARGEST_RING} bytes already; bound it by "
                "maxsize or max_bytes",
            )
        now = self._capacity << 3
        grown = now * (GROWTH if now < SLOWER_GROWTH else 2)
        size = max(min(grown, LARGEST_RING), (length << 3) * 2, now)
        size = min(size, _MOST_WORDS << 3)
        region = self._file.supply.claim(size + ((RING_RECORDS + 1) << 3), RING, generation)
        if region < 0:
            raise SharedMemoryExhausted(
                "the table of regions of this queue is full: it and its receivers hold too many big items"
            )
        self._begin(region, self.words[RING_TAIL])

    def _begin(self, region: int, tail: int) -> None:
        generation = self.generation + 1
        self._file.generations.begin(generation, region, tail >> INDEX_BITS)
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._queue_words[PUT_GENERATION] = generation | (self._queue_words[PUT_GENERATION] & SHUT_DOWN)
        self._load(generation)
