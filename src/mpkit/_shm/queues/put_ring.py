"""The ring that putters write into, as one process knows it: what they do under their lock.

This is where a record goes, what is known about the room behind it, and growing to a larger ring. Nothing
here takes a lock, waits or wakes anybody; `put_side` does.
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

#: A new ring is `_GROWTH` times as large as the one before, but only twice as large from `_SLOWER_GROWTH`
#: bytes on, and at most `LARGEST_RING` bytes.
_GROWTH: Final = 4
_SLOWER_GROWTH: Final = 16 * 1024 * 1024
LARGEST_RING: Final = 256 * 1024 * 1024
#: The largest number of words for records in a ring, if a single item needs them: half a gigabyte.
_MOST_WORDS: Final = INDEX_MASK - RING_RECORDS - 1
#: Results of `tail_for` that are no tail: the bounds let nothing in; there is no room in this ring.
FULL: Final = -1
GROW: Final = -2
#: Stands for "no bound" in `PutRing.left`: more items than are put at once, but a number that is fast to
#: handle.
_MANY: Final = 1 << 20
#: From this tail on, the counts are about to wrap around.
_LATE: Final = COUNT_LIMIT - (_MANY << (INDEX_BITS + 2))
_BYTE_ORDER: Final = sys.byteorder
_PADDING: Final = tuple(bytes(number) for number in range(8))


class PutRing:
    """Puts records into the current ring; all threads of the process share this object.

    Attributes:
        generation: the number of the ring that the other attributes describe; -1: none yet.
        words: its words.
        mm: the mapping that contains it.
        base: offset in `mm` of the first record's length word.
        tail: as long as this equals the ring's own tail, `room` and `left` are valid. (Getters only ever make
            more room.)
        room: how many words are free behind the tail, in one piece.
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
        """Put one record; False if the queue is full.

        Args:
            data: its content.
            flag: 0 for a pickle, else one of the flags in `records`.

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
            # Without the size of the record itself, which is counted with the ring.
            self._file.regions.mark_queued(
                records.big_region(data), tail >> INDEX_BITS, records.weight(data) - (length << 3)
            )
        self._publish(tail, 1, length)
        return True

    def put_pack(self, data: bytes, number: int) -> bool:
        """Put a pack of `number` items; False if the bounds do not let it in, or it needs another ring.

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
        """Put as many items as fit into one piece of the ring, with one copy and one store of the tail.

        Args:
            items: pickles.
            start: which of them is the first to be put.

        Returns:
            How many were put; 0 if the first one needs the slow path.
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
        """Decide where a record goes, and update `room` and `left`.

        Args:
            tail: the ring's tail.
            length: how many words the record takes.
            weight: how many bytes the item counts for `max_bytes`.

        Returns:
            The tail behind which the record goes: the ring's own, or one with the same count and the index of
            the ring's start. `FULL` if the bounds do not let it in, `GROW` if there is no room in this ring.
        """
        # Invalidates `room` and `left`, in case an interrupt comes before both are updated. The caller makes
        # them valid again when it has put the record.
        self.tail = -1
        left = _MANY
        if self._bounded:
            # If items are taken meanwhile, there is only more room.
            left = self._allowance(tail, weight)
            if left <= 0:
                self.left = left
                return FULL
        if tail >= _LATE:
            # Near the end of the counts `left` becomes 0, and every put takes the slow path, which handles
            # the wrap-around to zero.
            left = min(left, (COUNT_LIMIT - tail) >> (INDEX_BITS + 2))
        self.left = left
        # With several putters almost every put comes here. Computing with numbers above 2**30, such as head
        # and tail, takes three times as long as with smaller ones, so this is avoided as far as possible.
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
        # With `max_bytes` the next item needs a new look, because big items use bytes outside the ring.
        self.room = length if self._weighed else room
        return tail

    def claim(self, size: int, serial: int, *, if_room_for: int | None) -> int | None:
        """Claim a region for a big item, in the state WRITING.

        Args:
            size: how many bytes the region needs.
            serial: the serial of its `Writing`.
            if_room_for: claim it only if the bounds let in an item of this size in bytes now; None: in any
                case.

        Returns:
            The number of the region; -1 if there is no region left; None if the bounds do not let the item
            in.

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
        """Give back memory to the system that an empty queue does not need (under both locks)."""
        file, words = self._file, self._queue_words
        first, last = words[GET_GENERATION], words[PUT_GENERATION] & GENERATION_MASK
        if first == last and file.generations.size() == 0:
            self._load(last)
            if self.base == RING_RECORDS << 3:
                # It is in a region of the table: go back to the first ring, whose own generation is over.
                self._begin(0, self.words[RING_TAIL])
                words[GET_GENERATION] = self.generation
        with contextlib.suppress(SharedMemoryExhausted):
            # Ignored if a mapping is refused: the caller only wants an item, and this can be done later.
            file.supply.drop_free()

    def repair(self) -> None:
        """Free the regions of items that were never published. The caller has the lock, or takes it over."""
        _, puts = self._file.generations.counts()
        self._file.regions.free_unpublished_items(puts)

    # -- looking, which needs no lock ------------------------------------------------------------------------

    def is_full(self) -> bool:
        """Whether there is no room for any item, as seen without the lock, so that none is pickled in vain.

        Only for a queue with `maxsize`. If this is True, the queue was full at one moment during the call.
        False says nothing: this process may only know of room that there was a while ago.
        """
        if self.left > 0:
            return False
        file, ring = self._file, self.words
        # A rough check first. (Before the first put, these are not the words of a ring.)
        if ((ring[RING_TAIL] >> INDEX_BITS) - (ring[RING_HEAD] >> INDEX_BITS)) & COUNT_MASK < file.maxsize:
            return False
        # Shutting down and closing are final, so they are checked last: if they have not happened by then,
        # they had not when the queue was full.
        return file.generations.size() >= file.maxsize and not self.is_shut_down and not file.closed

    @property
    def is_shut_down(self) -> bool:
        return self._queue_words[PUT_GENERATION] >= SHUT_DOWN

    def used_bytes(self) -> int:
        """How many bytes the queued items occupy. Never blocks; inexact while others handle big items."""
        gets, puts, used = self._file.generations.snapshot()
        return used + self._file.regions.queued_bytes(gets, puts)

    # -- inside ----------------------------------------------------------------------------------------------

    def _follow(self) -> None:
        """Switch to the ring that is current now.

        Raises:
            QueueShutDown: the queue has been shut down.
        """
        generation = self._queue_words[PUT_GENERATION]
        if generation >= SHUT_DOWN:
            raise QueueShutDown("put into a queue that has been shut down")
        if generation != self.generation:
            self._load(generation)

    def _is_full_for(self, size: int) -> bool:
        """Whether the bounds do not let in a big item of this size in bytes."""
        if not self._bounded or self._allowance(self.words[RING_TAIL], records.weight_of(size)) > 0:
            return False
        # `room` and `left` are out of date.
        self.tail = -1
        self.left = 0
        return True

    def _publish(self, tail: int, number: int, length: int) -> None:
        """Publish `number` items in `length` words, which have been written behind `tail`."""
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
        """`tail_for` for a record for which there is no room up to the end of the ring.

        Args:
            tail: the ring's tail.
            index: the index in it.
            other: how many words are free at the start of the ring.
            length: how many words the record takes.
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
        """How many more items `maxsize` and `max_bytes` let in, at most `_MANY`; 0 or less: none.

        Args:
            tail: the ring's tail.
            weight: how much the next item counts for `max_bytes`.
        """
        file = self._file
        left = _MANY
        if file.maxsize:
            generation = self._queue_words[GET_GENERATION]
            # Getters may move on to the next generation meanwhile. Then this head is out of date, which does
            # no harm, because they only make more room.
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
        """Make the ring of a generation the current one of this process."""
        ring = self._file.generations.view(generation)
        self.words, self.mm, self.base = ring.words, ring.mm, ring.base
        self._capacity = ring.capacity
        self.tail = -1
        self.room = self.left = 0
        self.generation = generation

    def _grow(self, length: int) -> None:
        """Begin a new generation with a larger ring, which has room for a record of `length` words."""
        if length > _MOST_WORDS:
            # Otherwise one ring after the other would be created, and none would be large enough.
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
        grown = now * (_GROWTH if now < _SLOWER_GROWTH else 2)
        size = max(min(grown, LARGEST_RING), (length << 3) * 2, now)
        size = min(size, _MOST_WORDS << 3)
        region = self._file.supply.claim(size + ((RING_RECORDS + 1) << 3), RING, generation)
        if region < 0:
            raise SharedMemoryExhausted(
                "the table of regions of this queue is full: it and its receivers hold too many big items"
            )
        self._begin(region, self.words[RING_TAIL])

    def _begin(self, region: int, tail: int) -> None:
        """Begin a new generation in `region`, which continues the count in `tail`, and make it current."""
        generation = self.generation + 1
        self._file.generations.begin(generation, region, tail >> INDEX_BITS)
        if not TOTAL_STORE_ORDER:
            full_fence()
        self._queue_words[PUT_GENERATION] = generation | (self._queue_words[PUT_GENERATION] & SHUT_DOWN)
        self._load(generation)
