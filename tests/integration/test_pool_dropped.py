"""Iterators and pools that are interrupted, or dropped without being closed."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator

import pytest

from mpkit import BoundedQueue, TaskPool
from mpkit.errors import ClosedError, TaskCancelled
from tests.helpers.waiting import PATIENCE, wait_until


def wait_for(queue: BoundedQueue[int]) -> int:
    return queue.get()


def test_ctrl_c_while_the_input_is_read_is_raised_at_once() -> None:
    with BoundedQueue[int]() as queue, TaskPool(1) as pool:

        def interrupted() -> Iterator[BoundedQueue[int]]:
            yield queue
            raise KeyboardInterrupt

        # Meanwhile the first task waits: the exception must not be delayed until its result is there.
        with pytest.raises(KeyboardInterrupt):
            list(pool.imap(wait_for, interrupted()))
        queue.put(1)


def test_an_error_of_the_input_is_raised_after_the_results_before_it() -> None:
    def broken() -> Iterator[int]:
        yield -1
        raise LookupError("no more input")

    with TaskPool(1) as pool:
        results = pool.imap(abs, broken())
        assert next(results) == 1
        with pytest.raises(LookupError, match="no more input"):
            next(results)


def test_a_pool_and_its_iterator_may_be_collected_in_any_order() -> None:
    # The garbage collector finalizes the objects of a cycle in any order.
    for _ in range(5):
        pool = TaskPool(1)
        results = pool.imap(abs, iter(range(10_000)))
        pool.close()
        with pytest.raises(ClosedError):
            list(results)
        pool.terminate()
        pool.join()
        cycle: list[object] = [pool, results]
        cycle.append(cycle)
        del pool, results, cycle
        gc.collect()


def test_the_warning_about_a_dropped_pool_names_the_line_that_dropped_it() -> None:
    pool = TaskPool(1)
    with pytest.warns(ResourceWarning, match="unclosed") as warned:
        del pool
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tasks_of_a_dropped_pool_say_why_they_were_cancelled() -> None:
    handle = TaskPool(1).submit(time.sleep, PATIENCE)
    with pytest.raises(TaskCancelled, match="dropped without close"):
        handle.result(PATIENCE)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_dropped_pool_with_an_executor_ends_without_garbage_collection() -> None:
    """If pool and executor formed a cycle, only the garbage collector would end it, and that may be off."""
    gc.disable()
    try:
        pool = TaskPool(1)
        assert pool.executor.submit(abs, -3).result() == 3
        engine = pool._engine
        del pool
        wait_until(engine.is_over, "the pool is over")
    finally:
        gc.enable()


def test_after_shutdown_of_its_executor_a_pool_has_a_new_one() -> None:
    with TaskPool(1) as pool:
        handle = pool.executor.submit(time.sleep, 0.2)
        pool.executor.shutdown()
        assert handle.done()
        # This is a new executor.
        assert pool.executor.submit(abs, -3).result() == 3
