"""Many threads of one process use the same queue, lock, counter or pool: hardest in free-threaded Python."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from mpkit import BoundedQueue, Lock, LockedCounter, TaskHandle, TaskPool
from mpkit.errors import QueueShutDown, TaskCancelled
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

THREADS = 4
ITEMS = 600


def run_together(*work: Callable[[], object]) -> None:
    """Run each function in its own thread; all must end, and none may raise."""
    errors: list[BaseException] = []

    def guarded(one: Callable[[], object]) -> None:
        try:
            one()
        except BaseException as error:
            errors.append(error)

    # They are daemons, so that a failed test does not keep the interpreter from ending.
    threads = [threading.Thread(target=guarded, args=(one,), daemon=True) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive(), "a thread hangs"
    assert errors == []


@pytest.mark.parametrize("maxsize", [0, 5, 100])
@pytest.mark.parametrize("way", ["single", "many", "big"])
def test_a_queue_passes_each_item_once_and_in_the_order_of_its_putter(maxsize: int, way: str) -> None:
    found: list[list[tuple[int, int]]] = [[] for _ in range(THREADS)]
    over = threading.Barrier(THREADS)
    items = ITEMS // 10 if way == "big" else ITEMS

    def put(putter: int) -> None:
        for number in range(0, items, 20):
            run = [(putter, number + more) for more in range(20)]
            if way == "many":
                queue.put_many(run)
            else:
                for item in run:
                    queue.put((*item, np.full(20_000, item[1])) if way == "big" else item)
        if over.wait(PATIENCE) == 0:
            queue.shutdown()

    def get(getter: int) -> None:
        while True:
            try:
                items = queue.get_many(30) if way == "many" else [queue.get()]
            except QueueShutDown:
                return
            for putter, number, *array in items:
                assert not array or (array[0] == number).all()
                found[getter].append((putter, number))

    with BoundedQueue[Any](maxsize) as queue:
        run_together(
            *(lambda k=k: put(k) for k in range(THREADS)),
            *(lambda k=k: get(k) for k in range(THREADS)),
        )
    assert sorted(itertools.chain(*found)) == [(putter, n) for putter in range(THREADS) for n in range(items)]
    for taken in found:
        for putter in range(THREADS):
            numbers = [number for one, number in taken if one == putter]
            assert numbers == sorted(numbers)


def test_no_addition_is_lost_under_a_lock_or_in_a_counter() -> None:
    counter, lock, plain = LockedCounter(), Lock(), [0]

    def work() -> None:
        for number in range(ITEMS):
            counter.add()
            with lock:
                plain[0] += 1
            if number % 10 == 0:
                with counter as locked:
                    locked.value += 1

    run_together(*[work] * THREADS)
    assert plain == [THREADS * ITEMS]
    assert counter.value == THREADS * (ITEMS + ITEMS // 10)
    counter.close()
    lock.close()


def test_threads_that_share_a_pool_get_their_own_results() -> None:
    def work(seed: int) -> None:
        rng = random.Random(seed)
        handles: dict[int, TaskHandle[int]] = {}
        for number in range(ITEMS // 3):
            kind = rng.random()
            if kind < 0.5:
                handles[number] = pool.submit(tasks.square, number)
            elif kind < 0.8:
                assert pool.submit(tasks.square, number).result(PATIENCE) == number**2
            elif kind < 0.9:
                assert (pool.submit(tasks.make_array, 30_000).result(PATIENCE) == np.arange(30_000)).all()
            elif kind < 0.94:
                assert pool.map(tasks.square, range(20)) == [n * n for n in range(20)]
            elif kind < 0.98:
                assert sorted(pool.imap_unordered(tasks.square, range(30))) == [n * n for n in range(30)]
            else:
                handle = pool.submit(tasks.pid_of_worker_after, 0.01)
                if handle.cancel():
                    with pytest.raises(TaskCancelled):
                        handle.result(PATIENCE)
        assert all(handle.result(PATIENCE) == number**2 for number, handle in handles.items())

    with TaskPool(2, grace_period=0.5) as pool:
        run_together(*(lambda seed=seed: work(seed) for seed in range(THREADS)))
