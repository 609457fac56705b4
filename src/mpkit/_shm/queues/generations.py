"""The rings of a queue, one after the other (*generations*), each in a region of its own.

`RingView` only tells where a ring is; how records are put into it and taken from it is in `put_ring` and
`get_side`. (The module `ring` is a complete ring for a single putter and a single getter.)
"""

from __future__ import annotations

import mmap

from mpkit._platform.threads.fences import full_fence as _fence
from mpkit._shm.queues import layout
from mpkit._shm.queues.layout import (
    GENERATION_MASK,
    GENERATION_SLOTS,
    GENERATIONS,
    GET_GENERATION,
    PUT_GENERATION,
    RING_HEAD,
    RING_RECORDS,
    RING_TAIL,
    RING_WRAPPED_AT,
)
from mpkit._shm.queues.regions import Regions
from mpkit._shm.queues.ring import COUNT_MASK, INDEX_BITS, INDEX_MASK, WRAP


class RingView:
    """One generation's ring, as this process sees it.

    Attributes:
        words: the words of the ring, indexed by `RING_TAIL`, `RING_HEAD` and `RING_RECORDS`.
        mm: the mapping that contains it.
        base: offset in `mm` of the first record's length word.
        capacity: how many words there are for records.
    """

    __slots__ = ("base", "capacity", "mm", "words")

    def __init__(self, words: memoryview[int], mm: mmap.mmap, base: int, capacity: int) -> None:
        self.words: memoryview[int] = words
        self.mm: mmap.mmap = mm
        self.base: int = base
        self.capacity: int = capacity

    def used(self) -> int:
        """Bytes of the records between head and tail, with their length words and padding."""
        tail, head = self.words[RING_TAIL], self.words[RING_HEAD]
        if tail == head:
            return 0
        first, end = head & INDEX_MASK, tail & INDEX_MASK
        return (end - first if end > first else self.words[RING_WRAPPED_AT] - first + end) << 3


class Generations:
    """Finds and creates the rings.

    `PUT_GENERATION` and `GET_GENERATION` tell which ring each side uses; each side writes its word under its
    lock.
    """

    __slots__ = ("_first_words", "_mm", "_regions", "_words")

    def __init__(self, words: memoryview[int], mm: mmap.mmap, regions: Regions) -> None:
        self._words = words
        self._mm = mm
        self._regions = regions
        self._first_words = words[layout.FIRST_RING : layout.FIRST_RING + layout.FIRST_RING_WORDS]

    def view(self, generation: int) -> RingView:
        """The ring of a generation that is in use.

        Unless the caller has the lock of the side that uses it, the ring may be reused at any time, so its
        words may be those of another one.
        """
        return self.in_region(self._words[GENERATIONS + generation % GENERATION_SLOTS])

    def in_region(self, region: int) -> RingView:
        """The ring in a region; region 0 is the first ring, which is no region of the table."""
        if region == 0:
            return RingView(
                self._first_words,
                self._mm,
                (layout.FIRST_RING + RING_RECORDS) << 3,
                layout.FIRST_RING_WORDS - RING_RECORDS - 1,
            )
        mapped = self._regions.map(region)
        words = memoryview(mapped).cast("B").cast("Q")
        return RingView(words, mapped, RING_RECORDS << 3, min(len(words), INDEX_MASK) - RING_RECORDS - 1)

    def _words_of(self, generation: int) -> memoryview[int]:
        """The words of `view`, without making a view for the first ring, in which most queues stay."""
        region = self._words[GENERATIONS + generation % GENERATION_SLOTS]
        return self.in_region(region).words if region else self._first_words

    def begin(self, generation: int, region: int, count: int) -> None:
        """Create an empty ring in `region` and enter it as `generation`, without making it current.

        Args:
            generation: its number.
            region: where it is.
            count: how many items have been put so far; its head and tail continue this count.
        """
        ring = self.in_region(region)
        ring.words[RING_TAIL] = ring.words[RING_HEAD] = count << INDEX_BITS
        ring.words[RING_RECORDS + ring.capacity] = WRAP
        self._words[GENERATIONS + generation % GENERATION_SLOTS] = region

    def counts(self) -> tuple[int, int]:
        """How many items have ever been taken and put: exact at one moment during the call."""
        gets, puts, _ = self._look(False)
        return gets, puts

    def size(self) -> int:
        """How many items are queued: exact at one moment during the call."""
        gets, puts, _ = self._look(False)
        return (puts - gets) & COUNT_MASK

    def snapshot(self) -> tuple[int, int, int]:
        """`counts`, and the bytes that the queued items occupy in rings, at the same moment."""
        return self._look(True)

    def _look(self, bytes_too: bool) -> tuple[int, int, int]:
        """Read without a lock, and again if the head or a generation has changed meanwhile."""
        words = self._words
        while True:
            first = words[GET_GENERATION]
            head_words = self._words_of(first)
            head = head_words[RING_HEAD]
            _fence()
            last = words[PUT_GENERATION] & GENERATION_MASK
            tail = self._words_of(last)[RING_TAIL]
            used = 0
            if bytes_too:
                # (Limited, because in another user's file these may be any numbers.)
                between = range(first, min(last + 1, first + GENERATION_SLOTS))
                used = sum(self.view(generation).used() for generation in between)
            _fence()
            if (
                words[GET_GENERATION] == first
                and head_words[RING_HEAD] == head
                and words[PUT_GENERATION] & GENERATION_MASK == last
            ):
                return head >> INDEX_BITS, tail >> INDEX_BITS, used
