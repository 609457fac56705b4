"""The chain of rings: a queue grows without moving queued items, and shrinks again."""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Iterator

import pytest

from mpkit._shm.memory.segment import PAGE
from mpkit._shm.queues import generations, layout, put_ring, region_supply
from mpkit._shm.queues.held_items import HeldItem
from mpkit._shm.queues.layout import GENERATION_MASK, GET_GENERATION, PUT_GENERATION
from mpkit._shm.queues.open_queue import OpenQueue
from mpkit._shm.queues.records import BIG
from mpkit._shm.queues.ring import COUNT_LIMIT, COUNT_MASK, INDEX_BITS, ONE
from mpkit.errors import QueueShutDown, SharedMemoryExhausted
from tests.helpers.waiting import PATIENCE


@pytest.fixture
def queue() -> Iterator[OpenQueue]:
    queue = OpenQueue.create(maxsize=0, max_bytes=0)
    yield queue
    queue.close()


def put(queue: OpenQueue, item: bytes) -> None:
    assert queue.puts.try_put(item) or queue.puts.put(item, 0, True, time.monotonic() + PATIENCE)


def get(queue: OpenQueue) -> object:
    return queue.gets.try_get() or queue.gets.get(False, None)


def generation(queue: OpenQueue) -> int:
    return queue.words[PUT_GENERATION] & GENERATION_MASK


def item(number: int) -> bytes:
    return b"%06d" % number * 100


def test_growing_keeps_the_order_and_the_count(queue: OpenQueue) -> None:
    for number in range(1500):
        put(queue, item(number))
        assert queue.generations.size() == number + 1
    assert generation(queue) >= 2
    assert queue.words[GET_GENERATION] == 0
    gets, puts, used = queue.generations.snapshot()
    assert (gets, puts) == (0, 1500)
    assert used >= 1500 * 608
    for number in range(1500):
        assert get(queue) == item(number)
        assert queue.generations.size() == 1499 - number
    assert get(queue) is None
    assert queue.words[GET_GENERATION] == generation(queue)
    assert queue.generations.snapshot() == (1500, 1500, 0)


@pytest.mark.skipif(not hasattr(mmap, "MADV_REMOVE"), reason="the system keeps them")
def test_an_empty_queue_gives_its_rings_back(queue: OpenQueue) -> None:
    blocks = os.fstat(queue.segment.fd).st_blocks
    for _ in range(3):
        for number in range(1500):
            put(queue, item(number))
        while get(queue):
            pass
        before = generation(queue)
        assert queue.puts.trim()
        assert generation(queue) == queue.words[GET_GENERATION] == before + 1
        assert queue.generations.view(before + 1).base == (layout.FIRST_RING + layout.RING_RECORDS) << 3
        # One page of each region stays, and the row of this process.
        assert os.fstat(queue.segment.fd).st_blocks - blocks < 256
    put(queue, b"after")
    assert get(queue) == b"after"
    assert queue.generations.size() == 0


def test_a_queue_with_items_is_not_trimmed(queue: OpenQueue) -> None:
    for number in range(1500):
        put(queue, item(number))
    before = generation(queue)
    assert queue.puts.trim()
    assert generation(queue) == before
    assert get(queue) == item(0)


def test_more_rounds_than_slots(queue: OpenQueue) -> None:
    for _ in range(layout.GENERATION_SLOTS + 10):
        for number in range(100):
            put(queue, item(number))
        assert [get(queue) for _ in range(100)] == [item(number) for number in range(100)]
        assert queue.puts.trim()
    assert generation(queue) > layout.GENERATION_SLOTS


def test_the_counts_wrap_around_in_the_middle_of_a_ring(queue: OpenQueue) -> None:
    ring = queue.generations.view(0)
    start = COUNT_LIMIT - 3 * ONE
    ring.words[layout.RING_TAIL] = ring.words[layout.RING_HEAD] = start
    for number in range(10):
        put(queue, item(number))
        assert queue.generations.size() == number + 1
    assert ring.words[layout.RING_TAIL] >> INDEX_BITS == 7
    assert queue.gets.get_many(100, False, None) == [item(number) for number in range(10)]
    assert queue.generations.size() == 0


def test_the_counts_wrap_around_while_the_queue_grows(queue: OpenQueue) -> None:
    ring = queue.generations.view(0)
    ring.words[layout.RING_TAIL] = ring.words[layout.RING_HEAD] = (COUNT_MASK - 20) << INDEX_BITS
    for number in range(500):
        put(queue, item(number))
    assert generation(queue) >= 1
    assert queue.generations.size() == 500
    assert [get(queue) for _ in range(500)] == [item(number) for number in range(500)]


def test_a_queue_that_has_had_billions_of_rings_goes_on(queue: OpenQueue) -> None:
    """The count of rings must go on beyond 2**32, and not run into the bit that means "shut down"."""
    last = 2**32 - 1
    queue.words[PUT_GENERATION] = queue.words[GET_GENERATION] = last
    queue.words[layout.GENERATIONS + last % layout.GENERATION_SLOTS] = 0
    for number in range(500):
        put(queue, item(number))
    assert generation(queue) > last
    assert queue.generations.size() == 500
    assert [get(queue) for _ in range(500)] == [item(number) for number in range(500)]
    assert queue.puts.trim()
    put(queue, item(0))
    assert get(queue) == item(0)
    queue.puts.shut_down()
    assert queue.puts.ring.is_shut_down


def test_no_memory_to_grow_leaves_the_queue_as_it_is(
    queue: OpenQueue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_fd: int, _offset: int, _size: int) -> None:
        raise OSError(28, "No space left on device")

    put(queue, item(0))
    with monkeypatch.context() as patch:
        patch.setattr("mpkit._shm.queues.region_supply.reserve", refuse)
        number = 1
        with pytest.raises(SharedMemoryExhausted):
            while True:
                put(queue, item(number))
                number += 1
        assert generation(queue) == 0
    put(queue, item(number))
    assert [get(queue) for _ in range(number + 1)] == [item(at) for at in range(number + 1)]


def test_shut_down_is_known_in_every_generation(queue: OpenQueue) -> None:
    for number in range(300):
        put(queue, item(number))
    queue.puts.shut_down()
    with pytest.raises(QueueShutDown):
        put(queue, b"late")
    assert not queue.puts.try_put(b"late")
    assert [get(queue) for _ in range(300)] == [item(at) for at in range(300)]
    with pytest.raises(QueueShutDown):
        get(queue)
    assert queue.puts.trim()
    assert queue.puts.ring.is_shut_down


def test_an_item_that_fits_into_no_ring_makes_none(queue: OpenQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise rings of the largest size would be made for it, up to 63 of them."""
    largest = (1 << 14) - 1
    most = largest - layout.RING_RECORDS - 1
    for module in (generations, put_ring):
        monkeypatch.setattr(module, "INDEX_MASK", largest)
    monkeypatch.setattr(put_ring, "_MOST_WORDS", most)
    end = queue.supply._end()
    with pytest.raises(SharedMemoryExhausted, match="too many big items"):
        put(queue, bytes(8 * most - 7))
    assert generation(queue) == 0
    assert queue.supply._end() == end
    put(queue, item(1))
    put(queue, bytes(8 * most - 8))
    assert generation(queue) == 1
    assert [get(queue), get(queue)] == [item(1), bytes(8 * most - 8)]


def put_until_refused(queue: OpenQueue, message: str) -> int:
    """Put items with rising numbers until there is no memory for another one; return how many there are."""
    number = 0
    with pytest.raises(SharedMemoryExhausted, match=message):
        while True:
            put(queue, item(number))
            number += 1
    return number


def test_there_are_only_so_many_rings_at_a_time(queue: OpenQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    # So that none is larger than the one before.
    monkeypatch.setattr(put_ring, "LARGEST_RING", 1)
    number = put_until_refused(queue, "bound it by maxsize")
    assert generation(queue) == layout.GENERATION_SLOTS - 1
    assert queue.generations.size() == number
    for taken in range(number):
        assert get(queue) == item(taken)
        # There is room for another ring as soon as the first one is done with.
        if queue.words[GET_GENERATION] == 1 and generation(queue) == layout.GENERATION_SLOTS - 1:
            while generation(queue) < layout.GENERATION_SLOTS:
                put(queue, item(number))
                number += 1
    for taken in range(queue.generations.counts()[0], number):
        assert get(queue) == item(taken)
    assert get(queue) is None


def test_no_region_is_left_for_another_ring(queue: OpenQueue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(put_ring, "LARGEST_RING", 1)
    big = bytes(PAGE)
    bigs = 0
    while (written := queue.puts.write_big(big, [], True, None)) is not None and written.flag == BIG:
        assert queue.puts.put(written.record, written.flag, True, None)
        bigs += 1
    assert bigs == layout.REGION_SLOTS - region_supply.KEPT_FOR_RINGS
    number = put_until_refused(queue, "table of regions")
    assert generation(queue) == region_supply.KEPT_FOR_RINGS - 1
    for _ in range(bigs):
        taken = get(queue)
        assert isinstance(taken, HeldItem)
        assert taken.open().head == big
        del taken
    put(queue, item(number))
    assert [get(queue) for _ in range(number + 1)] == [item(at) for at in range(number + 1)]
