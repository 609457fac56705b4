"""`BoundedQueue` inside one process: arguments, semantics, threads and coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import functools
import gc
import io
import math
import os
import pickle
import queue as stdlib_queue
import random
import signal
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mpkit import BoundedQueue, QueueStatistics
from mpkit._shm.locks import robust_lock, sleepers
from mpkit._shm.locks.shared_file import ROWS_USED
from mpkit._shm.memory.names import owned_names
from mpkit._shm.queues import get_side, held_items, open_queue, views
from mpkit._shm.queues.layout import PUT_GENERATION
from mpkit._shm.queues.put_ring import PutRing
from mpkit.errors import (
    ClosedError,
    MpkitError,
    QueueEmpty,
    QueueFull,
    QueueShutDown,
    SerializationError,
    SharedMemoryExhausted,
)
from tests.helpers.waiting import PATIENCE, wait_until

BIG = 100_000
"""The size of an item that is stored in a region of its own."""


class Call(threading.Thread):
    """A call in a new thread; `result` returns or raises what the call does."""

    def __init__(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        super().__init__(daemon=True)
        self._work = functools.partial(function, *args, **kwargs)
        self.error: BaseException | None = None
        self.value: Any = None
        self.start()

    def run(self) -> None:
        try:
            self.value = self._work()
        except BaseException as error:
            self.error = error

    def result(self) -> Any:
        self.join(PATIENCE)
        assert not self.is_alive(), "did not return"
        if self.error is not None:
            raise self.error
        return self.value


def wait_for_getters(queue: BoundedQueue[Any], number: int = 1) -> None:
    wait_until(lambda: queue.statistics().waiting_getters == number, f"{number} getters wait")


def wait_for_putters(queue: BoundedQueue[Any], number: int = 1) -> None:
    wait_until(lambda: queue.statistics().waiting_putters == number, f"{number} putters wait")


# --- bad input ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, error, text",
    [
        ({"maxsize": "3"}, TypeError, "maxsize must be an integer, not '3'"),
        ({"maxsize": 2.5}, TypeError, "maxsize must be an integer, not 2.5"),
        ({"maxsize": None}, TypeError, "maxsize must be an integer, not None"),
        ({"maxsize": 1 << 40}, ValueError, "maxsize must be less than .*0 means"),
        ({"max_bytes": 0}, ValueError, "max_bytes must be at least 1, not 0; None means"),
        ({"max_bytes": -5}, ValueError, "max_bytes must be at least 1, not -5"),
        ({"max_bytes": 1 << 64}, ValueError, "max_bytes must be less than .*None means"),
        ({"max_bytes": 1e6}, TypeError, "max_bytes must be an integer, not 1000000.0"),
    ],
)
def test_a_constructor_refuses(arguments: dict[str, Any], error: type[Exception], text: str) -> None:
    before = owned_names()
    with pytest.raises(error, match=text):
        BoundedQueue(**arguments)
    assert not set(owned_names()).difference(before)


def test_max_bytes_is_given_by_name() -> None:
    with pytest.raises(TypeError):
        BoundedQueue(3, 100)  # type: ignore[call-arg]


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
@pytest.mark.parametrize(
    "call",
    [
        lambda queue, timeout: queue.put(1, timeout=timeout),
        lambda queue, timeout: queue.get(timeout=timeout),
        lambda queue, timeout: queue.get(True, timeout),
        lambda queue, timeout: queue.put_many([1], timeout=timeout),
        lambda queue, timeout: queue.get_many(timeout=timeout),
        lambda queue, timeout: queue.join(timeout),
    ],
)
def test_a_bad_timeout_is_refused_at_once(
    queue: BoundedQueue[Any], call: Callable[[BoundedQueue[Any], float], object], timeout: float
) -> None:
    queue.put("there")
    with pytest.raises(ValueError, match=r"timeout.*(nan|-)"):
        call(queue, timeout)
    assert queue.get_many() == ["there"]


@pytest.mark.parametrize("timeout", [-1, math.nan, "1"])
def test_a_timeout_is_ignored_when_the_call_does_not_block(small: BoundedQueue[Any], timeout: Any) -> None:
    """As in `queue.Queue`."""
    small.put(1, False, timeout)
    assert small.put_many([2], False, timeout) == 1
    assert small.get(False, timeout) == 1
    assert small.get_many(None, False, timeout) == [2]
    with pytest.raises(QueueEmpty):
        small.get(False, timeout)


@pytest.mark.parametrize("timeout", ["1", [], object()])
def test_a_timeout_of_the_wrong_type_is_refused(queue: BoundedQueue[Any], timeout: Any) -> None:
    with pytest.raises(TypeError, match="timeout"):
        queue.get(timeout=timeout)
    with pytest.raises(TypeError, match="timeout"):
        queue.put(1, timeout=timeout)
    assert queue.empty()


def test_the_infinite_timeout_is_none(queue: BoundedQueue[Any]) -> None:
    queue.put(1, timeout=math.inf)
    assert queue.get(timeout=math.inf) == 1


@pytest.mark.parametrize("wrong, error", [(0, ValueError), (-1, ValueError), ("2", TypeError)])
def test_get_many_refuses(queue: BoundedQueue[Any], wrong: Any, error: type[Exception]) -> None:
    queue.put(1)
    with pytest.raises(error, match=f"max_items must be .*{wrong}"):
        queue.get_many(wrong)
    assert queue.get() == 1


def test_put_many_refuses_an_argument_that_is_not_iterable(queue: BoundedQueue[Any]) -> None:
    with pytest.raises(TypeError):
        queue.put_many(3)  # type: ignore[arg-type]
    assert queue.empty()


# --- the same as in queue.Queue -----------------------------------------------------------------------------


@pytest.mark.parametrize("maxsize", [0, -1, 3])
def test_it_does_what_queue_queue_does(maxsize: int) -> None:
    """The same random calls of both have the same results."""
    dice = random.Random(maxsize)
    theirs: stdlib_queue.Queue[int] = stdlib_queue.Queue(maxsize)
    with BoundedQueue[int](maxsize) as ours:
        for step in range(600):
            answers: list[Any] = []
            put = dice.random() < 0.5
            for queue in (theirs, ours):
                try:
                    if put:
                        answers.append(queue.put_nowait(step))
                    else:
                        answers.append(queue.get_nowait())
                except (stdlib_queue.Empty, stdlib_queue.Full) as error:
                    answers.append(error.__class__.__mro__[-5:])
            assert isinstance(answers[0], tuple) == isinstance(answers[1], tuple)
            if not isinstance(answers[0], tuple):
                assert answers[0] == answers[1]
            assert (ours.qsize(), ours.empty(), ours.full()) == (
                theirs.qsize(),
                theirs.empty(),
                theirs.full(),
            )


@pytest.mark.parametrize(
    "item",
    [None, False, 0, "", b"", (), {"a": [1, {2}]}, "x" * 40_000, b"y" * BIG, bytearray(b"z" * BIG), range(9)],
)
def test_any_item_arrives(queue: BoundedQueue[Any], item: Any) -> None:
    queue.put(item)
    found = queue.get_nowait()
    assert found == item
    assert type(found) is type(item)


def test_the_errors_are_those_of_the_standard_library(small: BoundedQueue[Any]) -> None:
    with pytest.raises(QueueEmpty) as empty:
        small.get(timeout=0.01)
    assert isinstance(empty.value, stdlib_queue.Empty)
    assert isinstance(empty.value, MpkitError)
    assert small.put_many([1, 2, 3], timeout=0.01) == 2
    with pytest.raises(QueueFull) as full:
        small.put(3, timeout=0.01)
    assert isinstance(full.value, stdlib_queue.Full)
    assert "0.01 s" in str(full.value)
    assert small.qsize() == 2


def test_a_timeout_of_zero_does_not_wait(small: BoundedQueue[Any]) -> None:
    with pytest.raises(QueueEmpty):
        small.get(timeout=0)
    small.put(1, timeout=0)
    small.put(2, True, 0)
    with pytest.raises(QueueFull):
        small.put(3, timeout=0)
    with pytest.raises(QueueFull):
        small.put_nowait(b"x" * BIG)
    assert small.get(timeout=0) == 1
    assert small.get_many(timeout=0) == [2]


def test_a_put_that_waits_goes_on_when_there_is_room(small: BoundedQueue[Any]) -> None:
    small.put_many("ab")
    waiting = Call(small.put, "c", timeout=PATIENCE)
    wait_for_putters(small)
    assert small.full()
    assert small.get() == "a"
    waiting.result()
    assert small.get_many() == ["b", "c"]


def test_a_get_that_waits_goes_on_when_there_is_an_item(queue: BoundedQueue[Any]) -> None:
    waiting = Call(queue.get)
    wait_for_getters(queue)
    queue.put("here")
    assert waiting.result() == "here"
    many = Call(queue.get_many)
    wait_for_getters(queue)
    queue.put(bytearray(BIG))
    assert many.result() == [bytearray(BIG)]


def test_later_changes_do_not_travel(queue: BoundedQueue[Any]) -> None:
    item = [1, {"a": 2}]
    array = np.ones(BIG)
    queue.put(item)
    queue.put(array)
    queue.put_many([item, array])
    item.append(3)
    item[1]["a"] = 99  # type: ignore[index]
    array[:] = 7
    for _ in range(2):
        assert queue.get() == [1, {"a": 2}]
        assert queue.get().sum() == BIG


class Unpicklable:
    def __reduce__(self) -> str:
        raise ValueError("not me")


class OnlyOneWay:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return int, ("no number",)


@pytest.mark.parametrize("bad", [lambda: None, Unpicklable(), threading.Lock(), [1, io.StringIO]])
def test_what_cannot_be_pickled_is_refused_in_put(queue: BoundedQueue[Any], bad: Any) -> None:
    if isinstance(bad, list):
        bad = [1, iter(lambda: 1, 2)]
    queue.put("before")
    before = queue.statistics()
    for call in (queue.put, queue.put_nowait):
        with pytest.raises(SerializationError) as caught:
            call(bad)
        assert isinstance(caught.value, pickle.PicklingError)
        assert caught.value.__cause__ is not None
    with pytest.raises(SerializationError):
        queue.put((np.zeros(BIG), bad))
    with pytest.raises(SerializationError):
        queue.put_many([1, 2, bad, 4])
    with pytest.raises(SerializationError):
        asyncio.run(queue.aput(bad))
    assert queue.statistics() == before
    assert queue.get_many() == ["before"]


def test_an_error_of_the_iterable_of_put_many_leaves_the_queue_unchanged(queue: BoundedQueue[Any]) -> None:
    def items() -> Iterator[int]:
        yield 1
        raise LookupError("half way")

    with pytest.raises(LookupError):
        queue.put_many(items())
    assert queue.empty()


def test_what_cannot_be_unpickled_fails_one_get(queue: BoundedQueue[Any]) -> None:
    queue.put_many([OnlyOneWay(), "next"])
    with pytest.raises(SerializationError):
        queue.get()
    assert queue.get() == "next"


# --- many items ---------------------------------------------------------------------------------------------


def test_put_many_and_get_many(queue: BoundedQueue[Any]) -> None:
    assert queue.put_many([]) == 0
    assert queue.put_many(iter(range(5000))) == 5000
    assert queue.qsize() == 5000
    assert queue.get_many(1) == [0]
    assert queue.get_many(max_items=99) == list(range(1, 100))
    rest: list[int] = []
    while not queue.empty():
        rest += queue.get_many()
    assert rest == list(range(100, 5000))
    with pytest.raises(QueueEmpty):
        queue.get_many(block=False)


def test_put_many_of_all_sizes_keeps_the_order(queue: BoundedQueue[Any]) -> None:
    sizes = [10, 60_000, 5, 31_000, 33_000, 1, 200_000, 7] * 4
    items = [bytes([number]) * size for number, size in enumerate(sizes)]
    assert queue.put_many(items) == len(items)
    found: list[bytes] = []
    while not queue.empty():
        found += queue.get_many()
    assert found == items


def test_put_many_puts_what_there_is_room_for(small: BoundedQueue[Any]) -> None:
    assert small.put_many("abc", block=False) == 2
    assert small.put_many("cd", block=False) == 0
    assert small.put_many("cd", timeout=0.01) == 0
    waiting = Call(small.put_many, "cdef", timeout=PATIENCE)
    found = [small.get(timeout=PATIENCE) for _ in range(6)]
    assert found == list("abcdef")
    assert waiting.result() == 4


# --- the end ------------------------------------------------------------------------------------------------


def test_shutdown_lets_the_rest_be_taken(queue: BoundedQueue[Any]) -> None:
    queue.put_many([1, 2])
    queue.shutdown()
    queue.shutdown()
    for call in (queue.put, queue.put_nowait, lambda item: queue.put(item, timeout=1)):
        with pytest.raises(QueueShutDown):
            call(3)
    with pytest.raises(QueueShutDown):
        queue.put(bytes(BIG))
    with pytest.raises(QueueShutDown):
        queue.put_many([3, 4])
    assert list(queue) == [1, 2]
    for get in (queue.get, queue.get_nowait, queue.get_many, lambda: queue.get(timeout=0)):
        with pytest.raises(QueueShutDown) as caught:
            get()
        if sys.version_info >= (3, 13):
            assert isinstance(caught.value, stdlib_queue.ShutDown)
    assert "shut down" in repr(queue)


def test_shutdown_immediate_throws_away_what_is_queued(queue: BoundedQueue[Any]) -> None:
    queue.put_many([1, bytes(BIG), 3])
    assert queue.get() == 1
    queue.shutdown(immediate=True)
    assert queue.empty()
    with pytest.raises(QueueShutDown):
        queue.get()
    # For `join`, the discarded item counts as done; the one that was taken does not.
    assert not queue.join(0)
    queue.task_done()
    assert queue.join(0)
    with pytest.raises(ValueError, match="task_done"):
        queue.task_done()
    statistics = queue.statistics()
    assert (statistics.size, statistics.bytes, statistics.puts, statistics.gets) == (0, 0, 3, 3)


def test_an_immediate_shutdown_ends_a_join_though_items_were_done_before_they_were_taken(
    queue: BoundedQueue[Any],
) -> None:
    """As in `queue.Queue`: if a getter calls `task_done` once too often, `join` must not wait for ever."""
    queue.put_many([1, 2, 3])
    queue.get()
    queue.task_done()
    queue.task_done()
    joining = Call(queue.join)
    queue.shutdown(immediate=True)
    assert joining.result() is True
    with pytest.raises(ValueError, match="more often than items were put"):
        queue.task_done()


def test_shutdown_wakes_all_that_wait(queue: BoundedQueue[Any], small: BoundedQueue[Any]) -> None:
    small.put_many([1, 2])
    getters = [Call(queue.get), Call(queue.get, timeout=PATIENCE), Call(queue.get_many), Call(list, queue)]
    putters = [Call(small.put, 3), Call(small.put, bytes(BIG)), Call(small.put_many, [3], timeout=PATIENCE)]
    wait_for_getters(queue, 4)
    wait_for_putters(small, 3)
    queue.shutdown()
    small.shutdown()
    assert getters.pop().result() == []
    for call in getters + putters:
        with pytest.raises(QueueShutDown):
            call.result()
    assert list(small) == [1, 2]


def test_put_many_reports_how_many_items_it_put_before_the_shutdown(small: BoundedQueue[Any]) -> None:
    call = Call(small.put_many, range(10))
    wait_for_putters(small)
    small.shutdown()
    assert call.result() == 2
    assert list(small) == [0, 1]


USES: list[Callable[[BoundedQueue[Any]], object]] = [
    lambda queue: queue.put(1),
    lambda queue: queue.put(bytes(BIG)),
    lambda queue: queue.get(),
    lambda queue: queue.get_nowait(),
    lambda queue: queue.put_many([1]),
    lambda queue: queue.get_many(),
    lambda queue: queue.qsize(),
    lambda queue: queue.empty(),
    lambda queue: queue.full(),
    lambda queue: queue.maxsize,
    lambda queue: queue.statistics(),
    lambda queue: queue.shutdown(),
    lambda queue: queue.task_done(),
    lambda queue: queue.join(0),
    lambda queue: next(iter(queue)),
    pickle.dumps,
    lambda queue: asyncio.run(queue.aget()),
    lambda queue: asyncio.run(queue.aput(1)),
]


@pytest.mark.parametrize("number", range(len(USES)))
def test_use_after_close(number: int) -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    queue.put(1)
    queue.close()
    queue.close()
    with pytest.raises(ClosedError) as caught:
        USES[number](queue)
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, RuntimeError)
    assert "closed" in repr(queue)


def mapped_bytes(name: str) -> int:
    """How much of a file this process has mapped."""
    lines = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if name in line]
    return sum(int(end, 16) - int(start, 16) for start, end in (line[0].split("-") for line in lines))


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="looks at the mappings")
def test_a_closed_queue_takes_hardly_any_memory_even_if_its_handle_is_kept() -> None:
    with BoundedQueue[bytes]() as queue:
        name = queue._name
        queue.put(bytes(BIG))
        assert queue.get() == bytes(BIG)
        before = mapped_bytes(name)
    assert mapped_bytes(name) <= before - BIG
    assert "closed" in repr(queue)


def test_close_ends_the_calls_of_other_threads() -> None:
    queue: BoundedQueue[int] = BoundedQueue(maxsize=1)
    call = Call(queue.get)
    wait_for_getters(queue)
    queue.close()
    with pytest.raises(ClosedError):
        call.result()


@pytest.mark.parametrize("wait", [BoundedQueue.get, lambda queue: queue.put(2), BoundedQueue.join])
def test_a_signal_handler_may_close_the_queue_and_end_the_program(
    wait: Callable[[BoundedQueue[int]], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the handler raises reaches the caller, not that the queue is closed."""
    queue: BoundedQueue[int] = BoundedQueue(maxsize=1)
    queue.put(1)
    if wait is BoundedQueue.get:
        queue.get()

    def handler(_sleepers: sleepers.Sleepers, _deadline: float | None) -> bool:
        queue.close()
        raise SystemExit

    monkeypatch.setattr(sleepers.Sleepers, "sleep", handler)
    with pytest.raises(SystemExit):
        wait(queue)


def test_leaving_the_block_closes(queue: BoundedQueue[Any]) -> None:
    with BoundedQueue[int]() as entered:
        entered.put(1)
    with pytest.raises(ClosedError):
        entered.get()
    with pytest.raises(LookupError), BoundedQueue[int]() as failed:
        raise LookupError
    with pytest.raises(ClosedError):
        failed.get()


def test_a_dropped_queue_leaves_no_name() -> None:
    before = set(owned_names())
    queue: BoundedQueue[Any] = BoundedQueue()
    queue.put(bytes(BIG))
    assert len(set(owned_names()) - before) > 1
    del queue
    gc.collect()
    assert not set(owned_names()) - before  # names of earlier tests may disappear meanwhile


# --- finished work ------------------------------------------------------------------------------------------


def test_join_waits_for_task_done(queue: BoundedQueue[Any]) -> None:
    assert queue.join()
    with pytest.raises(ValueError, match="more often than items were put"):
        queue.task_done()
    queue.put_many([1, 2])
    assert not queue.join(0)
    assert not queue.join(timeout=0.01)
    joining = Call(queue.join)
    queue.get()
    queue.task_done()
    assert queue.get() == 2
    assert joining.is_alive()
    queue.task_done()
    assert joining.result() is True
    with pytest.raises(ValueError, match="more often than items were put"):
        queue.task_done()
    queue.put(3)
    assert not queue.join(0)


# --- bounds -------------------------------------------------------------------------------------------------


def test_no_bound_on_items() -> None:
    for maxsize in (0, -7):
        with BoundedQueue[int](maxsize) as queue:
            assert queue.put_many(range(30_000), block=False) == 30_000
            assert queue.maxsize == 0
            assert not queue.full()
            assert queue.qsize() == 30_000


def test_max_bytes_counts_exactly() -> None:
    """A simple model of the queue agrees with it after every step."""
    limit = 150_000
    dice = random.Random(2)
    model: deque[tuple[int, bytes]] = deque()
    with BoundedQueue[bytes](max_bytes=limit) as queue:
        for _ in range(1200):
            item = bytes(dice.choice([10, 100, 1000, 9000, 40_000, 70_000]))
            weight = (len(pickle.dumps(item, 5)) + 15) // 8 * 8
            fits = not model or sum(each for each, _ in model) + weight <= limit
            try:
                queue.put_nowait(item)
                went = True
            except QueueFull:
                went = False
            # An item in a region counts its record in the ring, too. So the exact size is only bounded here.
            if len(item) < 32_000:
                assert went == fits or sum(len(each) for _, each in model) > 32_000
            if went:
                model.append((weight, item))
                assert queue.statistics().bytes <= limit
            if dice.random() < 0.5 and model:
                assert len(queue.get_nowait()) == len(model.popleft()[1])
        assert queue.qsize() == len(model)


@pytest.mark.parametrize("before", [[], [1]])
def test_an_item_that_can_never_fit_is_refused(before: list[int]) -> None:
    with BoundedQueue[Any](max_bytes=100) as queue:
        for item in before:
            queue.put(item)
            assert queue.get() == item
        for bad in ("x" * 200, bytes(BIG)):
            for call in (queue.put, queue.put_nowait, lambda item: asyncio.run(queue.aput(item))):
                with pytest.raises(ValueError, match=r"can never fit: max_bytes is 100"):
                    call(bad)
            with pytest.raises(ValueError, match="can never fit"):
                queue.put_many(["fits", bad])
        assert queue.empty()
        queue.put("fits")
        assert queue.get() == "fits"


def test_a_full_queue_of_bytes_waits_for_room() -> None:
    with BoundedQueue[Any](max_bytes=1000) as queue:
        size = 0
        while not queue.full():
            queue.put(1, block=False)
            size += 1
        assert size == 61  # 16 bytes each; a small item has at most 32
        with pytest.raises(QueueFull):
            queue.put(bytes(80), timeout=0)
        waiting = Call(queue.put, bytes(900))
        wait_for_putters(queue)
        for _ in range(size):
            queue.get()
        waiting.result()
        assert queue.get() == bytes(900)


# --- big arrays ---------------------------------------------------------------------------------------------


def test_a_received_array_is_the_receivers_own(queue: BoundedQueue[Any]) -> None:
    sent = np.arange(BIG)
    queue.put({"a": sent, "b": sent[::2]})
    queue.put(sent)
    first, second = queue.get(), queue.get()
    assert first["a"].flags.writeable
    first["a"] += 1
    np.testing.assert_array_equal(second, sent)
    np.testing.assert_array_equal(first["a"], sent + 1)
    np.testing.assert_array_equal(first["b"], sent[::2])


def test_received_arrays_outlive_the_queue() -> None:
    with BoundedQueue[Any]() as queue:
        queue.put(np.arange(BIG))
        array = queue.get()
    del queue
    gc.collect()
    array += 1
    assert array[-1] == BIG


def test_many_arrays_can_be_held_and_their_memory_is_used_again(queue: BoundedQueue[Any]) -> None:
    def blocks() -> int:
        assert queue._shared is not None
        return os.fstat(queue._shared.segment.fd).st_blocks * 512

    held = []
    for number in range(400):
        queue.put(np.full(6000, number))
        held.append(queue.get())
    assert [int(array[7]) for array in held] == list(range(400))
    held.clear()
    before = blocks()
    for number in range(600):
        queue.put(np.full(6000, number))
        assert queue.get()[0] == number
    assert blocks() <= before


def test_more_big_items_than_regions(queue: BoundedQueue[Any]) -> None:
    for number in range(400):
        queue.put(bytes([number & 255]) * 40_000)
    assert queue.qsize() == 400
    for number in range(400):
        assert queue.get() == bytes([number & 255]) * 40_000


def test_a_burst_of_big_items_leaves_memory_for_larger_ones(queue: BoundedQueue[Any]) -> None:
    """Otherwise all regions would be free but too small, and every larger item would go through the ring."""
    for _ in range(240):
        queue.put(bytes(40_000))
    for _ in range(240):
        queue.get()
    assert queue._shared is not None
    rings_before = queue._shared.words[PUT_GENERATION]
    for number in range(5):
        item = bytes([number]) * 1_000_000
        queue.put(item)
        assert queue.qsize() == 1
        assert queue._shared.generations.snapshot()[2] < 1000, "it lies in the ring"
        assert queue.get() == item
    assert queue._shared.words[PUT_GENERATION] == rings_before


def test_memory_goes_back_when_the_queue_is_idle(queue: BoundedQueue[Any]) -> None:
    assert queue._shared is not None
    fd = queue._shared.segment.fd
    fresh = os.fstat(fd).st_blocks * 512
    for _ in range(4):
        queue.put(np.zeros(1_000_000))
    queue.put_many(range(200_000))
    assert os.fstat(fd).st_blocks * 512 > 30_000_000
    for _ in range(4):
        queue.get()
    while not queue.empty():
        queue.get_many()
    waiting = Call(queue.get)
    wait_until(lambda: os.fstat(fd).st_blocks * 512 < fresh + 400_000, "the memory has gone back")
    queue.put("after")
    assert waiting.result() == "after"
    queue.put(np.ones(1_000_000))
    assert queue.get().sum() == 1_000_000


# --- properties, repr and handles ---------------------------------------------------------------------------


def test_statistics(small: BoundedQueue[Any]) -> None:
    assert small.statistics() == QueueStatistics(
        size=0,
        bytes=0,
        maxsize=2,
        max_bytes=None,
        puts=0,
        gets=0,
        waiting_putters=0,
        waiting_getters=0,
        recoveries=0,
    )
    small.put(b"x" * 100)
    small.put(np.zeros(BIG))
    assert small.statistics().bytes > 8 * BIG + 100
    waiting = Call(small.put, 1)
    wait_for_putters(small)
    assert small.get() == b"x" * 100
    waiting.result()
    small.get_many()
    found = small.statistics()
    assert (found.size, found.puts, found.gets, found.waiting_putters) == (1, 3, 2, 0)
    with pytest.raises(AttributeError):
        found.size = 3  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(found)) == found


def test_repr_tells_the_state() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3, max_bytes=1000)
    queue.put(1)
    assert repr(queue) == "<BoundedQueue 1 of 3, max_bytes=1000 items>"
    queue.shutdown()
    assert repr(queue) == "<BoundedQueue 1 of 3, max_bytes=1000 items, shut down>"
    queue.close()
    assert repr(queue) == "<BoundedQueue closed>"


def test_a_handle_that_is_unpickled_in_the_same_process_is_the_same_queue(queue: BoundedQueue[Any]) -> None:
    again: BoundedQueue[int] = pickle.loads(pickle.dumps(queue))
    again.put(1)
    assert queue.get_nowait() == 1
    queue.put(again)
    queue.get_nowait().put(2)
    assert again.get_nowait() == 2
    del again
    queue.put(3)
    assert queue.get() == 3


class NamedQueue(BoundedQueue[Any]):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name


def test_the_attributes_of_a_subclass_travel() -> None:
    with NamedQueue("orders") as queue:
        again: NamedQueue = pickle.loads(pickle.dumps(queue))
        assert (type(again), again.name) == (NamedQueue, "orders")
        again.put(1)
        assert queue.get_nowait() == 1


class SlottedQueue(BoundedQueue[Any]):
    __slots__ = ("__private", "label", "unset")

    def __init__(self, label: str) -> None:
        super().__init__()
        self.label = label
        self.__private = label

    def private(self) -> str:
        return self.__private


class SlottedFurtherQueue(SlottedQueue):
    """A subclass that also has a `__dict__`."""

    note = "of the class"


class QueueWithAState(BoundedQueue[Any]):
    def __init__(self) -> None:
        super().__init__()
        self.thread_lock = threading.Lock()
        self.label = "mine"

    def __getstate__(self) -> str:
        return self.label

    def __setstate__(self, label: str) -> None:
        self.label = label
        self.thread_lock = threading.Lock()


def through_a_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


@pytest.mark.parametrize("again", [through_a_pickle, copy.copy, copy.deepcopy])
def test_attributes_travel_as_those_of_any_object(again: Callable[[Any], Any]) -> None:
    with SlottedQueue("a") as slotted:
        arrived = again(slotted)
        assert (arrived.label, arrived.private(), hasattr(arrived, "unset")) == ("a", "a", False)
    with SlottedFurtherQueue("b") as further:
        further.note = "of this one"
        arrived = again(further)
        assert (arrived.label, arrived.private(), arrived.note) == ("b", "b", "of this one")
    # A `__getstate__` of the class decides what is sent: not its lock, which cannot be pickled.
    with QueueWithAState() as stateful:
        arrived = again(stateful)
        assert arrived.label == "mine"
        assert not arrived.thread_lock.locked()
        arrived.put(1)
        assert stateful.get_nowait() == 1


# --- threads ------------------------------------------------------------------------------------------------


def test_threads_share_one_queue() -> None:
    number, putters = 1500, 3
    with BoundedQueue[Any](maxsize=20) as queue:

        def put(who: int) -> None:
            for count in range(number):
                queue.put((who, count, b"x" * (40_000 if count % 100 == 0 else 3)))

        def take() -> list[tuple[int, int]]:
            return [(who, count) for who, count, _ in queue]

        getting = [Call(take) for _ in range(3)]
        putting = [Call(put, who) for who in range(putters)]
        for call in putting:
            call.result()
        queue.shutdown()
        found = [call.result() for call in getting]
        for one in found:
            for who in range(putters):
                mine = [count for owner, count in one if owner == who]
                assert mine == sorted(mine)
        assert sorted(item for one in found for item in one) == [
            (who, count) for who in range(putters) for count in range(number)
        ]


# --- coroutines ---------------------------------------------------------------------------------------------


def queue_threads() -> int:
    return sum(thread.name.startswith("mpkit-queue") for thread in threading.enumerate())


def test_coroutines_wait_for_items_and_room(small: BoundedQueue[Any]) -> None:
    async def main() -> list[int]:
        async def put() -> None:
            for number in range(50):
                await small.aput(number)
            await small.aput(bytes(BIG))
            small.shutdown()

        task = asyncio.ensure_future(put())
        found = [item async for item in small]
        await task
        assert found.pop() == bytes(BIG)
        return found

    assert asyncio.run(main()) == list(range(50))


def test_a_thousand_waiting_coroutines_take_one_thread(queue: BoundedQueue[Any]) -> None:
    async def main() -> None:
        tasks = [asyncio.ensure_future(queue.aget()) for _ in range(1000)]
        await asyncio.sleep(0)
        assert queue_threads() == 1
        queue.put_many(range(1000))
        assert sorted(await asyncio.gather(*tasks)) == list(range(1000))

    asyncio.run(main())
    wait_until(lambda: not queue_threads(), "the thread has ended")


def test_cancelled_coroutines_lose_nothing(small: BoundedQueue[Any]) -> None:
    async def main() -> None:
        waiting = [asyncio.ensure_future(small.aget()) for _ in range(20)]
        await asyncio.sleep(0)
        number = 0
        for task in waiting:
            if not small.full():
                small.put_nowait(number)
                number += 1
            task.cancel()
            await asyncio.sleep(0)
        taken = [each for each in await asyncio.gather(*waiting, return_exceptions=True) if type(each) is int]
        while not small.empty():
            taken.append(await small.aget())
        assert sorted(taken) == list(range(number))

        small.put_many([1, 2])
        putting = [asyncio.ensure_future(small.aput(item)) for item in (3, bytes(BIG))]
        await asyncio.sleep(0)
        for task in putting:
            task.cancel()
        await asyncio.gather(*putting, return_exceptions=True)
        assert small.get_many() == [1, 2]
        assert small.empty()

    asyncio.run(main())


def test_close_ends_coroutines_that_wait() -> None:
    queue: BoundedQueue[int] = BoundedQueue()

    async def main() -> None:
        task = asyncio.ensure_future(queue.aget())
        await asyncio.to_thread(wait_for_getters, queue)
        queue.close()
        with pytest.raises(ClosedError):
            await task

    asyncio.run(asyncio.wait_for(main(), PATIENCE))
    wait_until(lambda: not queue_threads(), "the thread has ended")


def test_aput_pickles_at_once(small: BoundedQueue[Any]) -> None:
    async def main() -> None:
        small.put_many([1, 2])
        item = ["as it was"]
        task = asyncio.ensure_future(small.aput(item))
        await asyncio.sleep(0)
        item.append("changed")
        small.get_many()
        await task
        assert small.get() == ["as it was"]

    asyncio.run(main())


# --- regressions --------------------------------------------------------------------------------------------


def test_after_a_waker_died_before_its_token_others_are_woken_again(
    queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sleepers, "SLICE_SECONDS", 0.02)
    assert queue._shared is not None
    items = queue._shared.items
    waiting = Call(queue.get)
    wait_for_getters(queue)
    items.words[items.posted_at] += 1  # as if a waker had promised a token, and died
    wait_for_getters(queue)
    queue.put(1)
    assert waiting.result() == 1


def test_an_item_is_not_lost_when_another_thread_closes(monkeypatch: pytest.MonkeyPatch) -> None:
    queue: BoundedQueue[int] = BoundedQueue(maxsize=3)
    queue.put_many([0, 1, 2])
    putting = Call(queue.put, 3)
    wait_for_putters(queue)
    real = get_side.GetSide.wake_putters

    def close_first(self: get_side.GetSide, number: int = 1) -> None:
        monkeypatch.undo()
        Call(queue.close).result()
        real(self, number)

    monkeypatch.setattr(get_side.GetSide, "wake_putters", close_first)
    assert queue.get() == 0
    # The putter may have been woken before the close: then its put succeeds.
    with contextlib.suppress(ClosedError):
        putting.result()


def test_a_failed_first_use_keeps_no_row(queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> object:
        raise SharedMemoryExhausted("no room")

    monkeypatch.setattr(robust_lock, "ThreadLock", refuse)
    for _ in range(5):
        with pytest.raises(SharedMemoryExhausted):
            queue.put(1)
    assert queue._shared is not None
    assert queue._shared.words[ROWS_USED] <= 1
    monkeypatch.undo()
    queue.put(1)
    assert queue.get() == 1


def test_a_refused_map_loses_nothing(queue: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    assert queue._shared is not None
    regions = queue._shared.regions
    queue.put(bytes(BIG))
    regions.close()

    def refuse(*_args: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr("mpkit._shm.queues.regions.map_file", refuse)
    with pytest.raises(SharedMemoryExhausted):
        queue.get(timeout=1)
    assert queue.qsize() == 1
    monkeypatch.undo()
    assert queue.get() == bytes(BIG)


def test_a_big_item_that_was_not_put_frees_its_region(
    small: BoundedQueue[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    small.put_many([1, 2])
    for _ in range(300):
        with pytest.raises(QueueFull):
            small.put(bytes(BIG), block=False)

    def interrupt(*_args: object) -> bool:
        raise KeyboardInterrupt

    small.get_many()
    monkeypatch.setattr(PutRing, "put", interrupt)
    for _ in range(300):
        with pytest.raises(KeyboardInterrupt):
            small.put(bytes(BIG))
    monkeypatch.undo()
    small.put(bytes(BIG))
    assert small.get() == bytes(BIG)
    assert small._shared is not None
    assert os.fstat(small._shared.segment.fd).st_size < 2_000_000


class Interrupt(Exception):
    """Stands for the exception that a signal handler raises."""


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("name", ["local_acquire", "permit_acquire", "permit_release", "local_release"])
def test_an_interrupted_call_leaves_the_queue_in_order(
    queue: BoundedQueue[Any], name: str, when: str
) -> None:
    """A signal handler may raise between two system calls. Then the item of a `put` is in the queue or not,
    and the item of a `get` may be lost, but the queue goes on working.
    """
    assert queue._shared is not None
    for lock, call in (
        (queue._shared.put_lock, lambda: queue.put("item")),
        (queue._shared.get_lock, queue.get),
    ):
        queue.put_many(["first", "item"])
        assert queue.get() == "first"
        real = getattr(lock, name)

        def interrupt(*args: Any, real: Callable[..., Any] = real, lock: Any = lock) -> Any:
            setattr(lock, name, real)
            if when == "before":
                raise Interrupt
            real(*args)
            raise Interrupt

        setattr(lock, name, interrupt)
        with pytest.raises(Interrupt):
            call()
        setattr(lock, name, real)
        rest = [Call(queue.get, timeout=PATIENCE).result() for _ in range(queue.qsize())]
        assert rest in ([], ["item"], ["item", "item"])
        Call(queue.put, "after").result()
        assert queue.get_nowait() == "after"
    assert queue.statistics().bytes == 0


# -- big items are opened after the lock is released ---------------------------------------------------------


@pytest.mark.parametrize("take", ["get", "get_many", "get, after waiting"])
def test_a_big_item_is_opened_when_the_lock_is_free(take: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Opening an item imports a module and may copy, so other getters must not wait meanwhile."""
    held: list[bool] = []

    def open_views(*args: Any) -> list[memoryview] | None:
        held.append(queue._gets._lock.held_here())
        return views.open_views(*args)

    monkeypatch.setattr(held_items, "open_views", open_views)
    with BoundedQueue[bytearray]() as queue:
        if take == "get, after waiting":
            thread = threading.Timer(0.05, queue.put, (bytearray(100_000),))
            thread.start()
            found = [queue.get()]
            thread.join()
        else:
            queue.put(bytearray(100_000))
            found = [queue.get()] if take == "get" else queue.get_many()
    assert found == [bytearray(100_000)]
    assert held == [False]


def test_a_big_item_that_is_dropped_unopened_gives_its_memory_back() -> None:
    with BoundedQueue[bytearray]() as queue:
        regions = queue._opened().regions
        for _ in range(3):
            queue.put(bytearray(100_000))
        assert isinstance(queue._gets.get(False, None), held_items.HeldItem)
        assert regions.with_getters() == 0
        queue.shutdown(immediate=True)
        assert regions.with_getters() == 0
        assert queue.statistics().bytes == 0


def test_a_queue_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its destructor told of an AttributeError besides."""

    def fail(*_args: object) -> None:
        raise MemoryError

    unraisable: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", unraisable.append)
    monkeypatch.setattr(open_queue, "GetSide", fail)
    before = owned_names()
    with pytest.raises(MemoryError):
        BoundedQueue[int]()
    gc.collect()
    assert owned_names() == before
    assert not unraisable


def test_a_big_item_that_cannot_be_opened_gives_its_memory_back(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object) -> None:
        raise MemoryError

    monkeypatch.setattr(held_items, "open_views", fail)
    with BoundedQueue[bytearray]() as queue:
        queue.put(bytearray(100_000))
        with pytest.raises(MemoryError):
            queue.get()
        assert queue._opened().regions.with_getters() == 0


class _Signals:
    """While it is unpickled, a signal arrives, whose handler raises `error`."""

    def __init__(self, error: BaseException, size: int) -> None:
        self.arguments = error, size

    def __reduce__(self) -> tuple[Callable[..., None], tuple[object, ...]]:
        error, size = self.arguments
        return _receive_a_signal, (error, bytes(size))


def _receive_a_signal(error: BaseException, _bytes: bytes) -> None:
    def handle(*_args: object) -> None:
        raise error

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("size", [1, 100_000], ids=["small", "big"])
def test_a_signal_handler_may_exit_while_an_item_is_unpickled(size: int) -> None:
    with BoundedQueue[_Signals]() as queue:
        queue.put(_Signals(SystemExit(7), size))
        with pytest.raises(SystemExit) as ended:
            queue.get()
        assert ended.value.code == 7
        queue.put(_Signals(LookupError("a moment"), size))
        with pytest.raises(SerializationError, match="LookupError: a moment"):
            queue.get()
