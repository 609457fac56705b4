"""Packs: which items may share a record, and that this makes no visible difference."""

from __future__ import annotations

import os
import pickle
import threading
from collections import OrderedDict, deque, namedtuple
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from mpkit import BoundedQueue
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit._shm.queues import put_side
from mpkit._shm.queues.packs import FEWEST_ITEMS, MOST_BYTES, MOST_ITEMS, Pack, pack
from mpkit._shm.queues.ring import COUNT_LIMIT, INDEX_BITS, INDEX_MASK
from mpkit.errors import QueueEmpty, QueueFull
from tests.helpers.waiting import PATIENCE

Pair = namedtuple("Pair", "left right")  # noqa: PYI024  the plain kind, too, is a class of its own


class Text(str):
    """A class that a user defined."""

    __slots__ = ()


def packs_put(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of items of each pack that is put into a queue."""
    numbers: list[int] = []
    real = put_side.PutSide.put_pack

    def put_pack(
        self: put_side.PutSide, data: bytes, number: int, block: bool, deadline: float | None
    ) -> bool | None:
        went = real(self, data, number, block, deadline)
        numbers.append(number if went else 0)
        return went

    monkeypatch.setattr(put_side.PutSide, "put_pack", put_pack)
    return numbers


@pytest.mark.parametrize(
    "items",
    [
        list(range(10)),
        ["a", b"b", 1.5, True, None, 1 << 100],
        [(1, "abc", 2.0)] * 20,
        [{"a": 1, "b": [1, 2]}, {"a": 2}, [], {}, ((("deep",),),)],
        [[number] for number in range(MOST_ITEMS)],
    ],
)
def test_plain_items_are_packed(items: list[Any]) -> None:
    data = pack(items)
    assert data is not None
    assert pickle.loads(data) == items


SHARED: list[int] = [1]


@pytest.mark.parametrize(
    "items",
    [
        [1, 2, 3],
        [1, 2, 3, Pair(1, 2)],
        [1, 2, 3, Text("abc")],
        [1, 2, 3, {"a": Text("abc")}],
        [1, 2, 3, {Text("abc"): 1}],
        [1, 2, 3, OrderedDict(a=1)],
        [1, 2, 3, {1, 2}],
        [1, 2, 3, len],
        [1, 2, 3, int],
        [1, 2, 3, 2j],
        [1, 2, 3, np.zeros(3)],
        [1, 2, 3, np.int64(3)],
        [SHARED, SHARED, 3, 4],
        [SHARED, 2, 3, (SHARED,)],
        [1, 2, {"a": SHARED}, {"a": SHARED}],
        [1, 2, 3, (((("too deep",),),),)],
        [list(range(5000))] * 4,
        ["x" * MOST_BYTES, 1, 2, 3],
        [bytes([number]) * (MOST_BYTES // 4) for number in range(5)],
    ],
)
def test_items_for_which_it_would_make_a_difference_are_not_packed(items: list[Any]) -> None:
    assert pack(items) is None


def test_a_list_that_holds_itself_is_not_packed() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert pack([1, 2, 3, loop]) is None


def test_an_item_that_another_thread_adds_meanwhile_is_not_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpkit._shm.queues import packs

    monkeypatch.setattr(packs, "are_plain", lambda _items: True)
    assert pack([1, 2, 3, Pair(1, 2)]) is None
    assert pack([1, 2, 3, Text("abc")]) is None


def test_a_pack_gives_each_item_away_once() -> None:
    data = pack([[number] for number in range(10)])
    assert data is not None
    one = Pack(100, data)
    assert one.take(3, 5) == [[3], [4]]
    assert one.take(0, 1) == [[0]]
    assert one.take(5, 10) == [[number] for number in range(5, 10)]


def test_items_of_put_many_share_nothing(queue: BoundedQueue[Any]) -> None:
    same = [1]
    queue.put_many([same] * 10)
    got = queue.get_many()
    assert got == [[1]] * 10
    assert len(set(map(id, got))) == 10


def test_packs_are_used_and_count_as_their_items(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = packs_put(monkeypatch)
    assert queue.put_many(range(600)) == 600
    assert numbers == [256, 256, 88]
    assert queue.qsize() == 600
    assert queue.get() == 0
    assert queue.qsize() == 599
    assert queue.get_many(3) == [1, 2, 3]
    assert queue.statistics().gets == 4
    assert queue.get_nowait() == 4
    assert queue.get_many(400) == list(range(5, 405))
    queue.put("last")
    assert queue.get_many() == [*range(405, 600), "last"]
    assert queue.empty()
    assert queue.statistics().bytes == 0
    for _ in range(601):
        queue.task_done()
    assert queue.join(0)


def test_a_pack_keeps_no_reference_to_an_item_that_was_taken(queue: BoundedQueue[Any]) -> None:
    queue.put_many([[number] for number in range(10)])
    first = queue.get()
    first.append("mine")
    assert queue.get_many() == [[number] for number in range(1, 10)]


def test_a_bound_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = packs_put(monkeypatch)
    with BoundedQueue[int](maxsize=10) as queue:
        assert queue.put_many(range(8)) == 8
        assert numbers == [8]
        assert queue.put_many(range(8, 17), block=False) == 2
        assert numbers == [8, 0]
        assert queue.full()
        # A pack that is larger than the bound is not even tried.
        assert queue.put_many(range(20), block=False) == 0
        assert numbers == [8, 0]
        with pytest.raises(QueueFull):
            queue.put_nowait(1)
        # As soon as one item of the pack is taken there is room, although the record is still there.
        assert queue.get() == 0
        queue.put_nowait(10)
        assert queue.get_many() == list(range(1, 11))


def test_changes_after_put_many_do_not_reach_items_that_wait_for_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with BoundedQueue[Any](maxsize=6) as queue:
        items: list[list[Any]] = [[number] for number in range(9)]
        putting = threading.Thread(target=queue.put_many, args=(items,), daemon=True)
        putting.start()
        assert queue.get(timeout=PATIENCE) == [0]
        for item in items:
            item.append("changed")
        assert [queue.get(timeout=PATIENCE) for _ in range(8)] == [[number] for number in range(1, 9)]
        putting.join(PATIENCE)


def test_no_pack_where_bytes_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = packs_put(monkeypatch)
    with BoundedQueue[Any](max_bytes=1000) as queue:
        assert queue.put_many(range(10)) == 10
        assert numbers == []
        with pytest.raises(ValueError, match="can never fit"):
            queue.put_many([1, 2, 3, "x" * 2000])
        assert queue.get_many() == list(range(10))


def test_a_call_that_must_not_block_waits_only_once_for_a_stuck_lock(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue.put(0)
    waited: list[float | None] = []

    def never(_self: RobustLock, deadline: float | None) -> bool:
        waited.append(deadline)
        return False

    monkeypatch.setattr(RobustLock, "acquire", never)
    assert queue.put_many(range(1000), block=False) == 0
    assert len(waited) == 1
    assert waited[0] is not None


def test_shutdown_discards_packs(queue: BoundedQueue[Any]) -> None:
    queue.put_many(range(100))
    assert queue.get() == 0
    queue.task_done()
    queue.shutdown(immediate=True)
    assert queue.qsize() == 0
    assert queue.join(0)


def test_threads_share_a_pack(queue: BoundedQueue[int]) -> None:
    queue.put_many(range(2000))
    got: list[int] = []

    def take() -> None:
        while True:
            try:
                got.append(queue.get_nowait())
            except QueueEmpty:
                return

    threads = [threading.Thread(target=take) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(2000))


def test_the_counts_do_not_wrap_around_inside_a_pack(queue: BoundedQueue[Any]) -> None:
    assert queue._shared is not None
    shared = queue._shared
    generation = shared.generations.view(0).words
    for before in (1, FEWEST_ITEMS, 100, 5000):
        count = (COUNT_LIMIT >> INDEX_BITS) - before
        index = generation[0] & INDEX_MASK
        generation[0] = generation[8] = count << INDEX_BITS | index
        items = list(range(200))
        for _ in range(before // 100 + 2):
            assert queue.put_many(items) == 200
            assert queue.qsize() == 200
            assert queue.get() == 0
            assert queue.get_many(50) == items[1:51]
            assert queue.get_many() + ([] if queue.empty() else queue.get_many()) == items[51:]
            assert queue.empty()
        assert generation[0] < COUNT_LIMIT


class QueueAgainstDeque(RuleBasedStateMachine):
    """One thread uses all ways to put and to get, with or without a bound."""

    small = st.integers() | st.text(max_size=20) | st.lists(st.integers(0, 9), max_size=3)

    @initialize(maxsize=st.sampled_from([0, 1, 7, 300]))
    def make(self, maxsize: int) -> None:
        self.queue: BoundedQueue[Any] = BoundedQueue(maxsize)
        self.maxsize = maxsize
        self.model: deque[Any] = deque()

    @rule(items=st.lists(small, max_size=40), repeat=st.sampled_from([1, 1, 1, 20]))
    def put_many(self, items: list[Any], repeat: int) -> None:
        items = items * repeat
        room = self.maxsize - len(self.model) if self.maxsize else len(items)
        assert self.queue.put_many(items, block=False) == min(room, len(items))
        self.model.extend(items[:room])

    @rule(item=small | st.sampled_from([b"x" * 40_000, bytearray(100_000)]))
    def put(self, item: Any) -> None:
        if self.maxsize and len(self.model) >= self.maxsize:
            with pytest.raises(QueueFull):
                self.queue.put_nowait(item)
        else:
            self.queue.put_nowait(item)
            self.model.append(item)

    @precondition(lambda self: self.model)
    @rule(number=st.integers(1, 50))
    def get(self, number: int) -> None:
        for _ in range(min(number, len(self.model))):
            assert self.queue.get_nowait() == self.model.popleft()

    @precondition(lambda self: self.model)
    @rule(number=st.integers(1, 400) | st.none())
    def get_many(self, number: int | None) -> None:
        found = self.queue.get_many(number, block=False)
        assert 1 <= len(found) <= (number or len(found))
        assert found == [self.model.popleft() for _ in found]

    @precondition(lambda self: not self.model)
    @rule()
    def nothing_there(self) -> None:
        with pytest.raises(QueueEmpty):
            self.queue.get_nowait()

    @invariant()
    def counts(self) -> None:
        if hasattr(self, "queue"):
            assert self.queue.qsize() == len(self.model)

    def teardown(self) -> None:
        if hasattr(self, "queue"):
            self.queue.close()


TestQueueAgainstDeque = QueueAgainstDeque.TestCase
TestQueueAgainstDeque.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


def _take_some(
    queue: BoundedQueue[int], results: BoundedQueue[list[int]], take: Callable[[Any], list[int]]
) -> None:
    results.put(take(queue))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="the others are forked")
def test_processes_share_a_pack(queue: BoundedQueue[int]) -> None:
    queue.put_many(range(250))
    got: list[int] = [queue.get()]
    with BoundedQueue[list[int]]() as results:
        for take in (
            lambda there: [there.get() for _ in range(100)],
            lambda there: there.get_many(50),
        ):
            got.append(queue.get())
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    _take_some(queue, results, take)
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            got += results.get(timeout=PATIENCE)
    got += queue.get_many()
    assert got == list(range(250))
