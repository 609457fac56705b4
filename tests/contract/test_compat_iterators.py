"""Iterators of `mpkit.compat.Pool.imap`: used by several threads, and how long the pool keeps them."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from mpkit import compat
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.compat._iterators import IMapIterator
from mpkit.pool._imap_sink import ImapSink
from tests.contract import compat_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

#: More items than an imap with one worker reads before somebody takes results.
MANY = 600
#: How many seconds to wait for something that must not happen.
A_MOMENT = 0.1

_kept: list[Any] = []


def _keep(gate: Any) -> None:
    _kept[:] = [gate]


def _first_waits_at_gate(x: int) -> int:
    if x == 0:
        _kept[-1].get()
    return x


class _Numbers:
    """An input that notices two threads in it at once. In the middle, one waits a moment for a second one."""

    def __init__(self) -> None:
        self.count = 0
        self.is_read = threading.Event()
        self.is_shared = threading.Event()
        self._inside = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        if not self._inside.acquire(blocking=False):
            self.is_shared.set()
            raise AssertionError("two threads read the input at the same time")
        try:
            if self.count == MANY:
                raise StopIteration
            if self.count == MANY // 2:
                self.is_read.set()
                self.is_shared.wait(A_MOMENT)
            self.count += 1
            return self.count - 1
        finally:
            self._inside.release()


@pytest.mark.parametrize("other", ["close", "next"])
def test_one_thread_at_a_time_reads_the_input(other: str) -> None:
    numbers = _Numbers()
    with compat.Pool(1) as pool, ThreadPoolExecutor(2) as threads:
        results = pool.imap(tasks.square, numbers)
        taking = [threads.submit(list, results)]
        assert numbers.is_read.wait(PATIENCE)
        if other == "close":
            threads.submit(pool.close).result(PATIENCE)
        else:
            taking.append(threads.submit(list, results))
        taken = [each.result(PATIENCE) for each in taking]
        # Each thread gets its results in order.
        assert all(list(each) == sorted(each) for each in taken)
        assert sorted(itertools.chain.from_iterable(taken)) == [n * n for n in range(MANY)]
    assert not numbers.is_shared.is_set()


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
def test_a_result_goes_to_one_thread(verb: str, monkeypatch: pytest.MonkeyPatch) -> None:
    together = threading.Barrier(2)
    take = ImapSink.take

    def take_together(sink: Any) -> Any:
        with contextlib.suppress(threading.BrokenBarrierError):
            together.wait(A_MOMENT)
        return take(sink)

    def take_one(results: IMapIterator[int]) -> int | None:
        return next(results, None)

    monkeypatch.setattr(ImapSink, "take", take_together)
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with compat.Pool(1, _keep, (gate,)) as pool, ThreadPoolExecutor(2) as threads:
        results = getattr(pool, verb)(_first_waits_at_gate, [0])
        taking = [threads.submit(take_one, results) for _ in range(2)]
        gate.put(None)
        assert {each.result(PATIENCE) for each in taking} == {0, None}
    gate.close()


def _is_taken(lock: InterruptibleLock) -> bool:
    free = lock.acquire(False)
    if free:
        lock.release()
    return not free


def test_a_thread_that_waits_for_a_result_holds_up_nobody() -> None:
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with compat.Pool(1, _keep, (gate,)) as pool, ThreadPoolExecutor(2) as threads:
        results = pool.imap(_first_waits_at_gate, iter(range(MANY)))
        taking = threads.submit(list, results)
        wait_until(lambda: _is_taken(results._results._turn), "the thread takes the first result")
        for timeout in (0, 0.01, -1):
            with pytest.raises(compat.TimeoutError):
                results.next(timeout)
        try:
            # Must not wait for the result: that may need something that happens only after the close.
            threads.submit(pool.close).result(PATIENCE)
        finally:
            gate.put(None)
        assert taking.result(PATIENCE) == list(range(MANY))
    gate.close()


def test_an_input_may_close_its_pool_but_not_take_results() -> None:
    seen: list[BaseException] = []

    def numbers() -> Iterator[int]:
        for number in range(MANY):
            if number == MANY // 2:
                with pytest.raises(RuntimeError) as caught:
                    next(results)
                seen.append(caught.value)
                pool.close()
            yield number

    with compat.Pool(1) as pool:
        results = pool.imap(tasks.square, numbers())
        taken: list[int] = []
        with pytest.raises(ValueError, match="is closed"):
            taken.extend(each for each in results)
        assert "taking a result from this iterator" in str(seen[0])
        assert taken == [n * n for n in range(MANY // 2)]
        assert list(results) == []


def test_next_refuses_nan_and_accepts_infinity_as_its_timeout() -> None:
    with compat.Pool(1) as pool:
        results = pool.imap(tasks.square, [2])
        with pytest.raises(ValueError, match="nan"):
            results.next(float("nan"))
        assert results.next(float("inf")) == 4


# -- how long the pool keeps an iterator ---------------------------------------------------------------------


def test_a_pool_forgets_an_iterator_whose_last_result_was_taken() -> None:
    with compat.Pool(1) as pool:
        for number in range(5):
            assert next(pool.imap(tasks.square, [number])) == number * number
            with pytest.raises(KeyError):
                next(pool.imap_unordered(tasks.fail, [number]))
        assert not pool._iterators


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
def test_a_pool_forgets_abandoned_iterators_whose_work_is_done(verb: str) -> None:
    with compat.Pool(1) as pool:
        for number in range(100):
            getattr(pool, verb)(tasks.square, [number])
            # The only worker runs this after the item of the iterator, whose work is then done.
            pool.apply(tasks.square, (2,))
        assert len(pool._iterators) < 20


def test_a_pool_keeps_all_abandoned_iterators_that_have_work_to_do() -> None:
    done: compat.SimpleQueue[int] = compat.SimpleQueue()
    with compat.Pool(1, _keep, (done,)) as pool:
        for number in range(50):
            pool.imap(_put, iter([number, -1]))
        pool.close()
        pool.join()
        # Sorted: an iterator reads its second item when its first result is there, so the order varies.
        assert sorted(done.get() for _ in range(100)) == [-1] * 50 + list(range(50))
    done.close()


def _put(x: int) -> None:
    _kept[-1].put(x)
