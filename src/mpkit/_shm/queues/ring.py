"""A ring of length-prefixed records for one putter and one getter, whose state consists of two words.

Layout, counted in 8-byte words: the records are in ``[start, start + capacity)``. Each is one word with its
length in bytes, then the bytes, padded to a whole word. A record never wraps around: if the rest of the ring
is too short for it, `WRAP` is written there (if there is a word left), and the record begins at `start`
again.

``tail`` (written only by the putter) and ``head`` (written only by the getter) each contain, in one word, the
index of the next record *and* how many records have passed: ``count << INDEX_BITS | index``. So one 8-byte
store publishes a record together with the new count, and a process that is killed before that store has
changed nothing that is ever read. Empty means ``tail == head``; in a full ring the indices may be equal, but
then the counts differ. Counts wrap around at `COUNT_LIMIT` on both sides.

Memory order: the bytes of a record are written before ``tail``, and read after it. On machines that keep the
order of stores and of loads (x86) nothing more is needed; elsewhere there is a `full_fence` in between, on
both sides.
"""

from __future__ import annotations

import mmap

from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence

#: The index is in the low bits of head and tail, the count above it; `ONE` raises the count by one.
INDEX_BITS = 26
INDEX_MASK = (1 << INDEX_BITS) - 1
ONE = 1 << INDEX_BITS
#: Head and tail stay below this value, so counts are modulo 2**36.
COUNT_LIMIT = 1 << 62
COUNT_MASK = (1 << (62 - INDEX_BITS)) - 1
#: In place of a length: the next record is at the start of the ring.
WRAP = (1 << 64) - 1
_MAX_CAPACITY = INDEX_MASK


class TornRingError(Exception):
    """The content of the ring is invalid: something other than its putter has written there."""


class Ring:
    """A ring, as one process sees it. Putter and getter are one process each, or whoever holds a lock.

    Args:
        words: the segment as 8-byte words.
        mm: the same bytes, for copying.
        head_at: index of the word that the getter writes.
        tail_at: index of the word that the putter writes; on another cache line than `head_at`.
        start: index of the first word of the records.
        capacity: words that hold records (at most `_MAX_CAPACITY`).
    """

    __slots__ = (
        "_after",
        "_base",
        "_room",
        "_tail",
        "capacity",
        "head_at",
        "mm",
        "start",
        "tail_at",
        "words",
    )

    def __init__(
        self, words: memoryview[int], mm: mmap.mmap, *, head_at: int, tail_at: int, start: int, capacity: int
    ) -> None:
        if not 2 <= capacity <= _MAX_CAPACITY:
            raise ValueError(f"a ring holds 2 to {_MAX_CAPACITY} words, not {capacity}")
        self.words: memoryview[int] = words
        self.mm: mmap.mmap = mm
        self.head_at: int = head_at
        self.tail_at: int = tail_at
        self.start: int = start
        self.capacity: int = capacity
        self._base = start << 3
        # For the putter: as long as the tail equals `_tail`, `_room` words are free behind it in one piece.
        # (The getter only ever makes more room.)
        self._tail: int = -1
        self._room: int = 0
        # For the getter: the head that `drop` stores.
        self._after: int = 0

    # -- the putter ------------------------------------------------------------------------------------------

    def try_put(self, data: bytes | memoryview) -> bool:
        """Add one record; False, with nothing changed, if it does not fit now."""
        size = len(data)
        length = (size + 15) >> 3
        words = self.words
        tail = words[self.tail_at]
        if tail != self._tail or length > self._room:
            tail = self._tail_for(tail, length)
            if tail < 0:
                return False
        index = tail & INDEX_MASK
        words[self.start + index] = size
        at = self._base + (index << 3) + 8
        self.mm[at : at + size] = data
        tail += ONE + length
        if tail >= COUNT_LIMIT:
            tail -= COUNT_LIMIT
        self._room -= length
        self._tail = tail
        if not TOTAL_STORE_ORDER:
            full_fence()
        words[self.tail_at] = tail
        return True

    def _tail_for(self, tail: int, length: int) -> int:
        """Decide where a record of `length` words goes, and update `_room`.

        Returns:
            The tail behind which it goes: the ring's own, or one with the same count and the index of the
            ring's start. -1: it does not fit.
        """
        # Invalidates `_room`, in case an interrupt comes before the record is there.
        self._tail = -1
        head = self.words[self.head_at]
        index, first = tail & INDEX_MASK, head & INDEX_MASK
        if index < first or (index == first and tail != head):
            # The records go round the end, or fill the ring: the free words are in [index, first).
            self._room = first - index
            return tail if length <= self._room else -1
        if index + length <= self.capacity:
            self._room = self.capacity - index
            return tail
        # There is no room behind the records; perhaps there is at the start of the ring.
        if length > first:
            return -1
        if index < self.capacity:
            self.words[self.start + index] = WRAP
        self._room = first
        return tail - index

    def room(self) -> int:
        """The length in bytes of the largest record that fits now; -1: not even an empty one."""
        tail = self.words[self.tail_at]
        head = self.words[self.head_at]
        index, first = tail & INDEX_MASK, head & INDEX_MASK
        free = max(self.capacity - index, first) if tail == head or index > first else first - index
        return max((free - 1) << 3, 0) if free else -1

    # -- the getter ------------------------------------------------------------------------------------------

    def peek(self) -> bytes | None:
        """A copy of the oldest record, which stays in the ring; None if there is none."""
        words = self.words
        head = words[self.head_at]
        if head == words[self.tail_at]:
            return None
        if not TOTAL_STORE_ORDER:
            full_fence()
        index = head & INDEX_MASK
        passed = head - index
        size = words[self.start + index] if index < self.capacity else WRAP
        if size == WRAP:
            index = 0
            size = words[self.start]
        at = self._base + (index << 3) + 8
        data = self.mm[at : at + size]
        after = passed + ONE + index + ((size + 15) >> 3)
        self._after = after if after < COUNT_LIMIT else after - COUNT_LIMIT
        return data

    def drop(self) -> None:
        """Remove the oldest record, which `peek` has just returned."""
        if not TOTAL_STORE_ORDER:
            # The copy must be complete before the putter may write there again.
            full_fence()
        self.words[self.head_at] = self._after

    def left(self) -> int:
        """For the getter: how many records there are. More may be added at any time."""
        words = self.words
        return ((words[self.tail_at] >> INDEX_BITS) - (words[self.head_at] >> INDEX_BITS)) & COUNT_MASK

    def try_get_many(self, limit: int) -> list[bytes]:
        """Take up to `limit` of the oldest records, in order; they leave the ring together."""
        found, after = self.peek_many(limit)
        if found:
            self.drop_to(after)
        return found

    def peek_many(self, limit: int) -> tuple[list[bytes], int]:
        """Copies of up to `limit` of the oldest records, which stay in the ring, and the head behind them.

        Raises:
            TornRingError: the records do not end where head and tail say.
        """
        words, mm, base, start, capacity = self.words, self.mm, self._base, self.start, self.capacity
        head = words[self.head_at]
        tail = words[self.tail_at]
        found: list[bytes] = []
        if head == tail:
            return found, head
        if not TOTAL_STORE_ORDER:
            full_fence()
        # Limited by the count and by the ring's size: with invalid content (after a wild store) this must
        # neither run for ever nor use up all memory.
        count = ((tail >> INDEX_BITS) - (head >> INDEX_BITS)) & COUNT_MASK
        if count > capacity:
            raise TornRingError
        left = capacity << 3
        for _ in range(min(count, limit)):
            index = head & INDEX_MASK
            passed = head - index
            size = words[start + index] if index < capacity else WRAP
            if size == WRAP:
                index = 0
                size = words[start]
            left -= size + 8
            if left < 0:
                raise TornRingError
            at = base + (index << 3) + 8
            found.append(mm[at : at + size])
            head = passed + ONE + index + ((size + 15) >> 3)
            if head >= COUNT_LIMIT:
                head -= COUNT_LIMIT
        if head != tail and len(found) < limit:
            raise TornRingError
        return found, head

    def drop_to(self, place: int) -> None:
        """Remove the records before `place`, a head that `peek_many` has returned. May be repeated."""
        if not TOTAL_STORE_ORDER:
            # The copies must be complete before the putter may write there again.
            full_fence()
        self.words[self.head_at] = place

    # -- anybody ---------------------------------------------------------------------------------------------

    def is_empty(self) -> bool:
        return self.words[self.tail_at] == self.words[self.head_at]
