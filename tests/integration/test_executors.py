"""`pool.executor` and `mpkit.compat`'s ProcessPoolExecutor: how they shut down, cancel and map.

Both behave in the same way. Only Ctrl-C makes them stop a task that runs already.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import itertools
import math
import os
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import Any, cast

import pytest

from mpkit import BoundedQueue, TaskPool, compat
from mpkit.compat import futures
from mpkit.pool import _executor
from mpkit.pool._engine.submission import Submission
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")

#: How long to watch that something does not happen.
A_MOMENT = 0.1
#: The workers inherit these two queues, because they are forked.
_told: BoundedQueue[str]
_gate: BoundedQueue[None]


def tell_and_wait(x: int) -> int:
    """Report that the task has begun, wait for the gate, and report that it has ended."""
    _told.put(f"begun {x}")
    _gate.get()
    _told.put(f"ended {x}")
    return x


def told() -> str:
    return _told.get(timeout=PATIENCE)


def assert_not_done(future: Future[Any]) -> None:
    """Check that `future` still waits: the only worker has not been stopped to make room for it."""
    with pytest.raises(concurrent.futures.TimeoutError):
        future.result(A_MOMENT)


@contextlib.contextmanager
def _of_pool() -> Iterator[Executor]:
    with TaskPool(1, context="fork") as pool:
        yield pool.executor


@pytest.fixture(params=["pool.executor", "compat"])
def executor(request: pytest.FixtureRequest) -> Iterator[Any]:
    """An executor with one worker."""
    global _told, _gate
    with BoundedQueue[str]() as _told, BoundedQueue[None]() as _gate:
        with (
            _of_pool()
            if request.param == "pool.executor"
            else futures.ProcessPoolExecutor(1, compat.get_context("fork"))
        ) as executor:
            yield executor


def test_two_threads_that_ask_for_the_executor_of_a_pool_get_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With two executors, one would still take tasks after the other had been shut down."""
    with TaskPool(1, context="fork") as pool:
        others: list[Executor] = []
        thread = threading.Thread(target=lambda: others.append(pool.executor))

        class Slow(_executor.ExecutorTasks):
            def __init__(self) -> None:
                monkeypatch.undo()
                thread.start()
                thread.join(A_MOMENT)
                super().__init__()

        monkeypatch.setattr(_executor, "ExecutorTasks", Slow)
        mine = pool.executor
        thread.join(PATIENCE)
        mine.shutdown()
        with pytest.raises(RuntimeError, match="after shutdown"):
            others[0].submit(abs, -1)
        assert pool.executor.submit(abs, -1).result(PATIENCE) == 1


def test_a_task_that_is_submitted_while_the_executor_is_shut_down_is_refused_and_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller gets no handle, and the shutdown does not wait for it: so nobody else could stop it."""
    with TaskPool(1, context="fork") as pool:
        executor, submit = pool.executor, pool.submit
        handles: list[Future[Any]] = []

        def submit_and_shut_down(*arguments: Any) -> Future[Any]:
            handles.append(submit(*arguments))
            executor.shutdown()
            return handles[0]

        monkeypatch.setattr(pool, "submit", submit_and_shut_down)
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.wait_for_file, str(tmp_path / "never"))
        assert handles[0].cancelled()


def test_a_task_that_begins_while_the_executor_is_shut_down_is_not_stopped(
    executor: Executor, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = executor.submit(tell_and_wait, 1)
    assert told() == "begun 1"
    second = executor.submit(tell_and_wait, 2)
    cancel = Submission.cancel

    def cancel_late(submission: Submission, task: Any, **options: Any) -> None:
        if not first.done():
            _gate.put(None)
            assert [told(), told()] == ["ended 1", "begun 2"]
            first.result(PATIENCE)
        cancel(submission, task, **options)

    monkeypatch.setattr(Submission, "cancel", cancel_late)
    executor.shutdown(wait=False, cancel_futures=True)
    _gate.put(None)
    assert second.result(PATIENCE) == 2
    assert told() == "ended 2"


def test_ctrl_c_in_the_block_of_an_executor_stops_its_tasks(executor: Any) -> None:
    """Otherwise leaving the block would wait until the tasks end by themselves."""
    running = executor.submit(tell_and_wait, 1)
    waiting = executor.submit(tell_and_wait, 2)

    def use() -> None:
        with executor:
            assert told() == "begun 1"
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert running.cancelled()
    assert waiting.cancelled()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(tasks.nothing)


def test_ctrl_c_while_an_executor_is_shut_down_stops_its_tasks(
    executor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    running = executor.submit(tell_and_wait, 1)
    waiting = executor.submit(tell_and_wait, 2)
    assert told() == "begun 1"

    def interrupt(*_args: object) -> None:
        monkeypatch.undo()
        raise KeyboardInterrupt

    # `shutdown` of pool.executor waits in the first, that of the executor of mpkit.compat in the second.
    monkeypatch.setattr("mpkit.pool._executor.wait_for", interrupt)
    monkeypatch.setattr(TaskPool, "join", interrupt)
    with pytest.raises(KeyboardInterrupt):
        executor.shutdown()
    assert running.cancelled()
    assert waiting.cancelled()


def test_no_task_begins_while_the_tasks_of_an_executor_are_cancelled(executor: Any) -> None:
    waiting = [executor.submit(tell_and_wait, number) for number in range(5000)]
    assert told() == "begun 0"

    def use() -> None:
        with executor:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        use()
    assert all(future.cancelled() for future in waiting)
    assert _told.empty()


def test_a_map_checks_its_timeout(executor: Executor) -> None:
    assert list(executor.map(abs, [-1], timeout=10**400)) == [1]
    with pytest.raises(ValueError, match="nan"):
        executor.map(abs, [-1], timeout=math.nan)
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None for no limit; got '1'"):
        executor.map(abs, [-1], timeout="1")  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize("timeout", [0.01, 0, -1])
@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_map_that_times_out_lets_a_running_task_finish(
    executor: Executor, timeout: float, chunksize: int
) -> None:
    results = executor.map(tell_and_wait, range(20), timeout=timeout, chunksize=chunksize)
    assert told() == "begun 0"
    with pytest.raises(concurrent.futures.TimeoutError):
        next(results)
    # All others have been cancelled, so this one is next. It has to wait for the running chunk.
    last = executor.submit(tasks.square, 3)
    assert_not_done(last)
    for _ in range(chunksize):
        _gate.put(None)
    assert last.result(PATIENCE) == 9
    assert _told.get_many(99) == ["ended 0"] + ["begun 1", "ended 1"] * (chunksize - 1)


@pytest.mark.parametrize("chunksize", [1, 2])
def test_a_map_that_is_closed_lets_a_running_task_finish(executor: Executor, chunksize: int) -> None:
    results = cast("Any", executor.map(tell_and_wait, range(20), chunksize=chunksize))
    for _ in range(chunksize):
        _gate.put(None)
    assert next(results) == 0
    assert [told() for _ in range(2 * chunksize + 1)][-1] == f"begun {chunksize}"
    results.close()
    last = executor.submit(tasks.square, 3)
    assert_not_done(last)
    for _ in range(chunksize):
        _gate.put(None)
    assert last.result(PATIENCE) == 9
    assert _told.get_many(99)[0] == f"ended {chunksize}"
    assert _told.empty()


@pytest.mark.parametrize(
    "options, error, match",
    [
        ({"chunksize": 0}, ValueError, "chunksize must be at least 1"),
        ({"chunksize": -1}, ValueError, "chunksize must be at least 1"),
        ({"chunksize": 1.5}, TypeError, r"chunksize must be an int; got 1\.5"),
        ({"chunksize": "2"}, TypeError, "chunksize must be an int; got '2'"),
        ({"buffersize": 0}, ValueError, "buffersize must be"),
        ({"buffersize": 1.5}, TypeError, "buffersize must be an int"),
        ({"nonsense": 1}, TypeError, "nonsense"),
    ],
)
def test_a_map_checks_its_options(
    executor: Any, options: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=match):
        executor.map(tasks.square, [1], **options)


def test_a_map_reads_ahead_by_buffersize_chunks(executor: Any) -> None:
    read = itertools.count()
    results = executor.map(tasks.square, read, buffersize=2, chunksize=3)
    assert next(read) == 6
    assert [next(results) for _ in range(3)] == [0, 1, 4]
    assert next(read) == 10
    results.close()


@pytest.mark.parametrize("chunksize", [1, 2])
def test_workers_show_the_name_of_the_mapped_function(chunksize: int) -> None:
    global _told, _gate
    with BoundedQueue[str]() as _told, BoundedQueue[None]() as _gate, TaskPool(1, context="fork") as pool:
        results = pool.executor.map(tell_and_wait, [5], chunksize=chunksize)
        assert told() == "begun 5"
        assert [worker.function for worker in pool.workers()] == ["tell_and_wait"]
        _gate.put(None)
        assert list(results) == [5]
