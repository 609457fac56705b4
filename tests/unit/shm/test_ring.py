"""The ring, compared with a deque: records come out in order, complete and once."""

from __future__ import annotations

import mmap
from collections import deque

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from mpkit._shm.queues.ring import COUNT_LIMIT, INDEX_MASK, ONE, WRAP, Ring, TornRingError

START = 16


def make(capacity: int, *, at: int = 0) -> Ring:
    """An empty ring of `capacity` words whose head and tail are at the word `at`."""
    mm = mmap.mmap(-1, (START + capacity + 1) * 8)
    words = memoryview(mm).cast("B").cast("Q")
    ring = Ring(words, mm, head_at=8, tail_at=0, start=START, capacity=capacity)
    words[0] = words[8] = at
    # The memory behind the records belongs to others, and must not change.
    words[START + capacity] = 0xDEADBEEF
    return ring


def take(ring: Ring) -> bytes | None:
    """Take the oldest record, in the way a worker does."""
    data = ring.peek()
    if data is not None:
        ring.drop()
    return data


@settings(max_examples=60, stateful_step_count=50, deadline=None, derandomize=True)
class RingAgainstDeque(RuleBasedStateMachine):
    """Makes the calls in any order, and compares the results."""

    def __init__(self) -> None:
        super().__init__()
        self.ring = make(8)
        self.model: deque[bytes] = deque()

    @initialize(capacity=st.integers(2, 24), index=st.integers(0, 24), left=st.integers(0, 6))
    def begin(self, capacity: int, index: int, left: int) -> None:
        # Start anywhere in the ring, and shortly before the counts wrap around.
        self.ring = make(capacity, at=(COUNT_LIMIT - ONE * (left + 1)) | min(index, capacity))
        self.model = deque()

    @rule(size=st.integers(0, 80), fill=st.integers(0, 255))
    def put(self, size: int, fill: int) -> None:
        data = bytes([fill]) * size
        fits = size <= self.ring.room()
        assert self.ring.try_put(data) is fits
        if fits:
            self.model.append(data)

    @rule()
    def get(self) -> None:
        assert take(self.ring) == (self.model.popleft() if self.model else None)

    @rule(limit=st.integers(1, 6))
    def get_many(self, limit: int) -> None:
        expected = [self.model.popleft() for _ in range(min(limit, len(self.model)))]
        assert self.ring.try_get_many(limit) == expected

    @rule()
    def peek_and_drop(self) -> None:
        assert self.ring.peek() == (self.model[0] if self.model else None)
        if self.model:
            self.ring.drop()
            self.model.popleft()

    @invariant()
    def the_count_is_exact(self) -> None:
        assert self.ring.left() == len(self.model)
        assert self.ring.is_empty() is not bool(self.model)
        assert self.ring.words[START + self.ring.capacity] == 0xDEADBEEF, "written behind the end"
        if not self.model:
            assert self.ring.room() >= (self.ring.capacity // 2 - 1) << 3, "wherever the index stands"


TestRingAgainstDeque = RingAgainstDeque.TestCase


def test_a_full_ring_has_equal_indices_and_is_not_empty() -> None:
    ring = make(8)
    items = [bytes([number]) * 8 for number in range(4)]
    assert all(map(ring.try_put, items))
    # The tail is at the end of the ring, and the head is not: their indices differ so far.
    assert take(ring) == items[0]
    assert ring.try_put(b"again...")
    tail, head = ring.words[0], ring.words[8]
    assert tail & INDEX_MASK == head & INDEX_MASK
    assert tail != head
    assert not ring.is_empty()
    assert ring.left() == 4
    assert ring.room() == -1
    assert not ring.try_put(b"")
    assert ring.try_get_many(10) == [*items[1:], b"again..."]
    assert ring.is_empty()


def test_a_record_that_does_not_fit_before_the_end_begins_at_the_start() -> None:
    ring = make(8)
    assert ring.try_put(bytes(24))  # words 0 to 3
    assert ring.try_put(b"")  # word 4
    assert take(ring) == bytes(24)
    assert ring.try_put(b"x" * 24)
    assert ring.words[START + 5] == WRAP
    assert ring.try_get_many(5) == [b"", b"x" * 24]


def test_a_record_of_the_whole_ring() -> None:
    ring = make(8)
    for _ in range(3):
        assert ring.try_put(b"y" * 56)
        assert not ring.try_put(b"")
        assert take(ring) == b"y" * 56


def test_the_counts_wrap_around_to_zero() -> None:
    ring = make(64, at=COUNT_LIMIT - ONE)
    assert all(map(ring.try_put, [b"a", b"b", b"c"]))
    assert ring.words[0] < COUNT_LIMIT
    assert ring.left() == 3
    assert [take(ring) for _ in range(4)] == [b"a", b"b", b"c", None]
    assert ring.words[0] == ring.words[8]


def test_a_put_works_after_one_that_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ring = make(64)
    for _ in range(6):
        assert ring.try_put(bytes(72))  # ten words each
    assert len(ring.try_get_many(6)) == 6
    assert ring.try_put(b"")
    real = Ring._tail_for

    def interrupted(self: Ring, tail: int, length: int) -> int:
        real(self, tail, length)
        raise KeyboardInterrupt

    # The next record goes to the start of the ring, where there is more room than at the tail.
    monkeypatch.setattr(Ring, "_tail_for", interrupted)
    with pytest.raises(KeyboardInterrupt):
        ring.try_put(bytes(72))
    monkeypatch.undo()
    assert ring.try_put(b"b" * 72)
    assert ring.words[START + 64] == 0xDEADBEEF, "written behind the end"
    assert ring.try_get_many(9) == [b"", b"b" * 72]


def test_a_putter_that_dies_before_the_store_of_tail_has_done_nothing() -> None:
    ring = make(8)
    ring.try_put(b"one")
    tail = ring.words[0]
    ring.try_put(b"two")
    ring.words[0] = tail  # as if the put had been killed before it stored the tail
    assert ring.left() == 1
    assert ring.try_put(b"three")
    assert ring.try_get_many(5) == [b"one", b"three"]


@pytest.mark.parametrize("capacity", [0, 1, INDEX_MASK + 1])
def test_impossible_capacities(capacity: int) -> None:
    mm = mmap.mmap(-1, mmap.PAGESIZE)
    with pytest.raises(ValueError, match="holds 2 to"):
        Ring(memoryview(mm).cast("B").cast("Q"), mm, head_at=8, tail_at=0, start=16, capacity=capacity)


def test_no_more_is_taken_than_a_ring_can_hold() -> None:
    """Otherwise a torn ring would keep its reader busy for ever, and fill its memory."""
    ring = make(8)
    ring.try_put(b"x" * 8)
    ring.words[ring.tail_at] += 1000 * ONE
    with pytest.raises(TornRingError):
        ring.peek_many(100)
