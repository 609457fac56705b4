"""`mpkit.compat.futures.ProcessPoolExecutor` behaves as the standard library's does."""

from __future__ import annotations

import asyncio
import concurrent.futures
import copy
import gc
import itertools
import multiprocessing
import os
import pickle
import threading
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any, cast

import pytest

from mpkit import LockedCounter, compat
from mpkit.compat import futures
from mpkit.compat.futures import _future
from mpkit.pool import TaskPool
from mpkit.pool._engine.options import PoolOptions
from tests.conftest import own_or_of_the_server
from tests.contract import compat_tasks as tasks
from tests.helpers.processes import reap, run_python
from tests.helpers.waiting import PATIENCE, wait_until


@pytest.fixture(params=["multiprocessing", "compat"])
def context(request: pytest.FixtureRequest, start_method: str) -> Any:
    module = multiprocessing if request.param == "multiprocessing" else compat
    return module.get_context(start_method)


def test_an_executor_has_all_its_verbs(context: Any) -> None:
    with futures.ProcessPoolExecutor(2, context, tasks.initialize, ("ready",)) as executor:
        assert isinstance(executor, concurrent.futures.Executor)
        assert executor.submit(tasks.add, 1, y=2).result(PATIENCE) == 3
        assert list(executor.map(tasks.add, [1, 2], [3, 4, 5])) == [4, 6]
        assert list(executor.map(tasks.square, range(10), chunksize=3)) == [x * x for x in range(10)]
        assert executor.submit(tasks.initialized).result() == ["ready"]
        done, _ = futures.wait([executor.submit(tasks.square, x) for x in range(3)])
        assert sorted(future.result() for future in done) == [0, 1, 4]
        assert {f.result() for f in futures.as_completed([executor.submit(tasks.square, 2)])} == {4}


def test_map_reads_an_infinite_input_with_a_buffer() -> None:
    with futures.ProcessPoolExecutor(1) as executor:
        results = executor.map(tasks.square, itertools.count(), buffersize=4, chunksize=2)
        assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
        results.close()  # type: ignore[attr-defined]  # a generator, as in the standard library


def test_map_submits_before_it_is_asked() -> None:
    taken: list[int] = []

    def numbers() -> Any:
        for number in range(10):
            taken.append(number)
            yield number

    with futures.ProcessPoolExecutor(1) as executor:
        eager = executor.map(tasks.square, numbers())
        assert len(taken) == 10
        assert len(list(eager)) == 10
        taken.clear()
        lazy = executor.map(tasks.square, numbers(), buffersize=3)
        assert len(taken) == 3
        next(lazy)
        assert len(taken) == 4
        assert len(list(lazy)) == 9


@pytest.mark.parametrize(
    "options, error",
    [
        ({"chunksize": 0}, ValueError),
        ({"buffersize": 0}, ValueError),
        ({"buffersize": 1.5}, TypeError),
    ],
)
def test_map_checks_its_options(options: dict[str, Any], error: type[Exception]) -> None:
    with futures.ProcessPoolExecutor(1) as executor, pytest.raises(error):
        executor.map(tasks.square, [1], **options)


def test_map_ends_when_its_time_is_over() -> None:
    gate = LockedCounter()
    with futures.ProcessPoolExecutor(1) as executor:
        with pytest.raises(futures.TimeoutError):
            list(executor.map(gate.wait_for, [1], timeout=0.05))  # does not stop the running task
        gate.add()


@pytest.mark.parametrize("ask", ["wait", "as_completed", "result", "exception", "cancel"])
def test_callbacks_have_been_called_when_an_outcome_is_seen(
    ask: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Programs collect results in callbacks, and tqdm updates its bar, so these must not come too late."""
    monkeypatch.setattr(_future, "_HEAD_START_SECONDS", PATIENCE)
    gate: Any = compat.SimpleQueue()
    called: list[futures.Future[None]] = []

    def slow_callback(future: futures.Future[None]) -> None:
        time.sleep(0.05)
        called.append(future)

    with futures.ProcessPoolExecutor(1) as executor:
        first, last = executor.submit(tasks.take, gate), executor.submit(tasks.take, gate)
        first.add_done_callback(slow_callback)
        last.add_done_callback(slow_callback)
        if ask == "cancel":
            assert last.cancel()
            assert called == [last]
        gate.put(None)
        gate.put(None)
        match ask:
            case "wait":
                futures.wait([last])
            case "as_completed":
                assert list(futures.as_completed([last])) == [last]
            case "result" | "exception":
                getattr(last, ask)()
                assert called == [first, last]
        # `wait` and `as_completed` return before the last callback is called, as in the standard library.
        assert ask == "cancel" or called[0] is first
    gate.close()


def test_a_callback_that_does_not_return_keeps_nobody_waiting() -> None:
    gate = threading.Event()
    # Keeps both tasks running until their callbacks are added: on a future that has ended, a callback would
    # be called at once, in this thread.
    task_gate: Any = compat.SimpleQueue()
    seen: list[bool] = []
    with futures.ProcessPoolExecutor(1) as executor:
        first, last = executor.submit(tasks.take, task_gate), executor.submit(tasks.take, task_gate)

        def take_other(_future: futures.Future[None]) -> None:
            last.result()
            seen.append(last.done())
            gate.wait(PATIENCE)

        first.add_done_callback(take_other)
        last.add_done_callback(id)
        task_gate.put(None)
        task_gate.put(None)
        first.result()
        last.result()
        gate.set()
    assert seen == [True]
    task_gate.close()


def test_errors_come_out_of_the_future() -> None:
    with futures.ProcessPoolExecutor(1) as executor:
        with pytest.raises(KeyError):
            executor.submit(tasks.fail, 1).result()
        with pytest.raises(KeyError):
            list(executor.map(tasks.fail, [1]))
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            executor.submit(tasks.square, cast("Any", lambda: 1)).result()
        # The result is a lock. Like the standard library, it passes on what pickle raises.
        with pytest.raises(TypeError, match="lock"):
            executor.submit(tasks.unpicklable).result()
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.crash).result()
        # Better than the standard library: only that task fails.
        assert executor.submit(tasks.square, 3).result() == 9


def test_an_initializer_that_fails_breaks_the_executor() -> None:
    with futures.ProcessPoolExecutor(1, initializer=tasks.broken_initializer) as executor:
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.square, 1).result(PATIENCE)


def test_no_task_is_accepted_after_shutdown() -> None:
    executor = futures.ProcessPoolExecutor(1)
    future = executor.submit(tasks.square, 4)
    executor.shutdown()
    executor.shutdown(wait=False, cancel_futures=True)
    assert future.result() == 16
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)


def test_shutdown_can_cancel_what_has_not_begun() -> None:
    event = compat.get_context("spawn").Event()
    executor = futures.ProcessPoolExecutor(
        1, initializer=tasks.keep, initargs=(event,), mp_context=compat.get_context("spawn")
    )
    running = executor.submit(tasks.wait_for_kept, 1)
    wait_until(running.running, "the first task has begun")
    waiting = [executor.submit(tasks.square, x) for x in range(500)]
    told: list[futures.Future[int]] = []
    listening = threading.Thread(target=lambda: told.extend(futures.as_completed(waiting, PATIENCE)))
    listening.start()
    executor.shutdown(wait=False, cancel_futures=True)
    assert waiting[-1].cancelled()
    # `as_completed` yields the cancelled futures, too, whether it was called before or after the shutdown.
    listening.join(PATIENCE)
    assert set(told) == set(futures.as_completed(waiting, PATIENCE)) == set(waiting)
    event.set()
    assert running.result(PATIENCE) == 1
    executor.shutdown()


@pytest.mark.parametrize("verb", ["terminate_workers", "kill_workers"])
@own_or_of_the_server
def test_workers_can_be_ended_by_force(start_method: str, verb: str) -> None:
    executor = futures.ProcessPoolExecutor(2, compat.get_context(start_method))
    running = [executor.submit(tasks.sleep_for_ever) for _ in range(2)]
    for future in running:
        wait_until(future.running, "the task has begun")
    waiting = [executor.submit(tasks.sleep_for_ever) for _ in range(20)]
    getattr(executor, verb)()
    _, pending = futures.wait(running + waiting, PATIENCE)
    assert not pending
    for future in running:
        with pytest.raises(BrokenProcessPool):
            future.result()
        assert not future.cancelled()
    for future in waiting:
        assert future.cancelled()
    with pytest.raises(BrokenProcessPool):
        executor.submit(tasks.square, 1)
    executor.shutdown()
    assert executor._pool is not None
    assert executor._pool.statistics().workers_started == 2
    # A second call finds no workers, and does nothing.
    getattr(executor, verb)()


def test_workers_that_have_nothing_to_do_can_be_ended_by_force() -> None:
    executor = futures.ProcessPoolExecutor(2)
    assert executor.submit(tasks.square, 3).result() == 9
    executor.kill_workers()
    executor.shutdown()
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)


def test_it_serves_an_event_loop() -> None:
    async def main() -> int:
        with futures.ProcessPoolExecutor(1) as executor:
            return await asyncio.get_running_loop().run_in_executor(executor, tasks.square, 5)

    assert asyncio.run(main()) == 25


def test_an_executor_that_is_dropped_finishes_its_work() -> None:
    future = futures.ProcessPoolExecutor(1).submit(tasks.square, 6)
    gc.collect()
    assert future.result(PATIENCE) == 36


PROGRAM = """
import os
from mpkit.compat import futures
from mpkit.compat.futures import _future
from mpkit.pool import TaskPool
from tests.contract import compat_tasks as tasks

if __name__ == "__main__":
    executor = futures.ProcessPoolExecutor(1)
    future = executor.submit(tasks.square, 7)
    # `os.write`, so that each line is written in one piece: two processes write to the same pipe.
    future.add_done_callback(lambda done: os.write(1, b"%d\\n" % done.result()))
    futures.ProcessPoolExecutor(1).submit(os.write, 1, b"dropped\\n")
"""


def test_a_program_that_ends_waits_for_its_work(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    path = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])
    ended = run_python("-W", "error", program, env={"PYTHONPATH": path})
    assert sorted(ended.stdout.split()) == ["49", "dropped"]
    assert ended.stderr == ""


AT_EXIT = """
import atexit, time
from mpkit.compat import futures

def end():
    print(future.done())
    for late in executor, futures.ProcessPoolExecutor(1):
        try:
            late.submit(print)
        except RuntimeError as error:
            print(error)

if __name__ == "__main__":
    atexit.register(end)
    executor = futures.ProcessPoolExecutor(1)
    for _ in range(20):
        future = executor.submit(time.sleep, 0.02)
"""


def test_when_exit_handlers_run_all_work_is_done_and_no_more_is_accepted(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(AT_EXIT)
    ended = run_python("-W", "error", program)
    assert ended.stdout.splitlines() == [
        "True",
        "cannot schedule new futures after shutdown",
        "cannot schedule new futures after interpreter shutdown",
    ]
    assert ended.stderr == ""


@pytest.mark.parametrize("keep", [False, True])
def test_a_child_that_ends_waits_for_its_work(context: Any, tmp_path: Any, keep: bool) -> None:
    path = tmp_path / "done"
    process = context.Process(target=tasks.leave_work, args=(str(path), keep))
    with reap(process):
        process.join(PATIENCE)
        assert process.exitcode == 0
    assert path.exists()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"max_workers": 0}, ValueError),
        ({"max_workers": -1}, ValueError),
        ({"initializer": 3}, TypeError),
        ({"max_tasks_per_child": 0}, ValueError),
        ({"max_tasks_per_child": 1.5}, TypeError),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    (name,) = options
    with pytest.raises(error, match=name):
        futures.ProcessPoolExecutor(**options)


def test_a_worker_can_be_replaced_after_some_tasks() -> None:
    with futures.ProcessPoolExecutor(1, max_tasks_per_child=1) as executor:
        pids = [executor.submit(os.getpid) for _ in range(3)]
    assert len({pid.result() for pid in pids}) == 3


def test_an_executor_shut_down_while_it_starts_its_workers_takes_no_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A signal handler may do that. A task that were accepted then would be lost when the program ends."""
    executor = futures.ProcessPoolExecutor(1)
    pools: list[TaskPool] = []

    make = TaskPool._of

    def start(options: PoolOptions) -> TaskPool:
        executor.shutdown(wait=False)
        pools.append(make(options))
        return pools[0]

    monkeypatch.setattr(TaskPool, "_of", start)
    for _ in range(2):
        with pytest.raises(RuntimeError, match="after shutdown"):
            executor.submit(tasks.square, 3)
    (pool,) = pools
    assert pool.join(0)


def test_an_executor_starts_its_workers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler that submits while they are started would have others started."""
    executor = futures.ProcessPoolExecutor(1)
    make = TaskPool._of

    def start(options: PoolOptions) -> TaskPool:
        with pytest.raises(RuntimeError, match="this thread is already starting an executor"):
            executor.submit(tasks.square, 2)
        return make(options)

    monkeypatch.setattr(TaskPool, "_of", start)
    with executor:
        assert executor.submit(tasks.square, 3).result(PATIENCE) == 9


def test_an_executor_can_be_neither_pickled_nor_copied() -> None:
    """At its end the program waits for all executors that it knows. It would not know the copy of one."""
    with futures.ProcessPoolExecutor(1) as executor:
        for copy_it in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="ProcessPoolExecutor"):
                copy_it(executor)


def test_an_executor_shut_down_in_the_middle_of_a_submit_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error must be that of the standard library, and not name a pool, which the caller never made."""
    with futures.ProcessPoolExecutor(1) as executor:
        assert executor.submit(tasks.square, 3).result(PATIENCE) == 9
        submit = TaskPool.submit

        def submit_late(pool: TaskPool, *args: Any, **kwargs: Any) -> Any:
            executor.shutdown(wait=False)
            return submit(pool, *args, **kwargs)

        monkeypatch.setattr(TaskPool, "submit", submit_late)
        with pytest.raises(RuntimeError, match="cannot schedule new futures after shutdown"):
            executor.submit(tasks.square, 3)
