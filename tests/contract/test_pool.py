"""`TaskPool` keeps its contract under every start method: results, errors, deaths of workers."""

from __future__ import annotations

import concurrent.futures
import copy
import functools
import os
import pickle
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit.errors import (
    ClosedError,
    InitializerFailed,
    PoolBroken,
    SerializationError,
    TaskCancelled,
    TaskTimeout,
    WaitTimeout,
    WorkerCrashed,
)
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine import insight as _insight
from mpkit.pool._engine import limits as _limits
from mpkit.process import WorkerProcess
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

LONG = PATIENCE


@pytest.fixture
def pool(start_method: str) -> Iterator[TaskPool]:
    """A new pool for each test."""
    with TaskPool(processes=2, context=start_method, grace_period=0.2) as pool:
        yield pool


@pytest.fixture(scope="module")
def same_pool(method: str) -> Iterator[TaskPool]:
    """One pool for all tests that do not end a worker.

    They must keep their handles: dropping one cancels its task, and cancelling a running task ends a worker.
    """
    with TaskPool(processes=2, context=method, grace_period=0.2) as pool:
        yield pool


def test_results_and_order(same_pool: TaskPool) -> None:
    handles = [same_pool.submit(tasks.square, n) for n in range(50)]
    assert [handle.result(LONG) for handle in handles] == [n * n for n in range(50)]
    assert same_pool.apply(tasks.add, (1,), {"b": 2}) == 3
    assert same_pool.map(tasks.square, range(100)) == [n * n for n in range(100)]
    assert same_pool.map(tasks.square, range(99, -1, -3), chunksize=4) == [n * n for n in range(99, -1, -3)]
    assert same_pool.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
    assert list(same_pool.imap(tasks.square, range(30), chunksize=4)) == [n * n for n in range(30)]
    assert sorted(same_pool.imap_unordered(tasks.square, range(30))) == [n * n for n in range(30)]


def test_an_error_comes_back_as_itself(same_pool: TaskPool) -> None:
    handle = same_pool.submit(tasks.fail, "why")
    with pytest.raises(ValueError, match="why") as caught:
        handle.result(LONG)
    assert "in fail" in str(caught.value.__cause__)
    assert not handle.successful()
    assert isinstance(handle.exception(), ValueError)


@pytest.mark.parametrize(
    "function, args, expected",
    [
        (tasks.leave, (3,), SystemExit),
        (tasks.raise_base, (), BaseException),
        (tasks.return_unpicklable, (), SerializationError),
        (tasks.return_what_breaks, (), SerializationError),
        (tasks.raise_unpicklable, (), SerializationError),
        (tasks.raise_what_interrupts, (), SerializationError),
        (tasks.raise_a_long_one, (), ValueError),
        (tasks.raise_needs_two, (), tasks.NeedsTwo),
        (tasks.echo, (tasks.Breaks(),), SerializationError),
    ],
)
def test_an_object_that_cannot_be_sent_fails_only_its_task(
    same_pool: TaskPool,
    function: Callable[..., object],
    args: tuple[object, ...],
    expected: type[BaseException],
) -> None:
    started = same_pool.statistics().workers_started
    with pytest.raises(expected):
        same_pool.submit(function, *args).result(LONG)
    assert same_pool.submit(tasks.square, 3).result(LONG) == 9
    assert same_pool.statistics().workers_started == started


def test_what_cannot_be_pickled_is_refused_in_submit(pool: TaskPool) -> None:
    with pytest.raises(SerializationError):
        pool.submit(tasks.echo, tasks.Unpicklable())
    with pytest.raises(SerializationError):
        pool.submit(lambda: 1)
    with pytest.raises(SerializationError):
        pool.map(tasks.echo, [1, 2, tasks.Unpicklable()])
    assert pool.submit(tasks.square, 3).result(LONG) == 9


def test_sending_an_object_that_belongs_to_the_pool_says_what_to_send_instead(pool: TaskPool) -> None:
    closed = pool.share([1])
    closed.close()
    process: WorkerProcess = WorkerProcess(target=tasks.hang)
    for value, remedy in (
        (pool.submit(tasks.square, 3), "send what its result() returns"),
        (pool.map_async(tasks.square, [3]), "send what its result() returns"),
        (pool.imap(tasks.square, [3]), "send the results that it yields"),
        (pool, "let a task create a pool of its own"),
        (pool.with_options(retries=1), "let a task create a pool of its own"),
        (process, "send its pid, or what its result() returned"),
        (closed, "ClosedError: this shared object has been closed"),
    ):
        with pytest.raises(SerializationError) as caught:
            pool.submit(tasks.echo, value)
        # At the end, because no general advice may follow that contradicts it.
        assert str(caught.value).endswith(remedy)
        assert "argument 1 of echo" in str(caught.value)
        with pytest.raises((TypeError, ClosedError)):
            pickle.dumps(value)


def test_a_copy_of_a_handle_is_the_handle(same_pool: TaskPool) -> None:
    handle = same_pool.submit(tasks.square, 3)
    copied = copy.copy(handle)
    assert copied.result(LONG) == 9
    view = copy.copy(same_pool.with_options(retries=1))
    assert view.apply(tasks.square, (3,)) == 9
    results = same_pool.imap(tasks.square, [1, 2])
    del handle, copied
    assert next(copy.copy(results)) == 1
    assert next(results) == 4, "dropping the copy has cancelled it"


@pytest.mark.parametrize(
    "function, args, exitcode, name",
    [
        (tasks.kill_myself, (), -signal.SIGKILL, "SIGKILL"),
        (tasks.segfault, (), -signal.SIGSEGV, "SIGSEGV"),
        (tasks.exit_now, (0,), 0, None),
        (tasks.exit_now, (7,), 7, None),
    ],
)
def test_a_death_fails_its_own_task_only(
    pool: TaskPool,
    function: Callable[..., object],
    args: tuple[object, ...],
    exitcode: int,
    name: str | None,
    tmp_path: Path,
) -> None:
    gate = tmp_path / "gate"
    neighbour = pool.submit(tasks.wait_for_file, str(gate))
    handle = pool.submit(function, *args)
    queued = [pool.submit(tasks.square, n) for n in range(20)]
    with pytest.raises(WorkerCrashed) as caught:
        handle.result(LONG)
    gate.touch()
    error = caught.value
    assert (error.exitcode, error.signal, error.task_id) == (exitcode, name, handle.task_id)
    assert error.pid not in (None, os.getpid())
    if name == "SIGSEGV":
        assert error.stack is not None
        assert "segfault" in error.stack
    assert neighbour.result(LONG) == str(gate)
    assert [handle.result(LONG) for handle in queued] == [n * n for n in range(20)]


def test_a_poison_task_is_tried_again_as_often_as_asked(pool: TaskPool, tmp_path: Path) -> None:
    path = tmp_path / "count"
    with pytest.raises(WorkerCrashed, match="tried 3 times"):
        pool.with_options(retries=2).submit(tasks.count_and_die, str(path)).result(LONG)
    assert path.read_text() == "xxx"
    assert pool.with_options(retries=1).submit(tasks.die_once, str(tmp_path / "once"), 5).result(LONG) == 5


@pytest.mark.parametrize("function", [tasks.busy_in_c, tasks.hang])
def test_a_time_limit_stops_the_task(
    pool: TaskPool, function: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Wait as long as needed for the stack: on a busy machine a worker may take long to send it.
    monkeypatch.setattr(_limits, "_STACK_SECONDS", LONG)
    stack = ""
    for limit in (0.2, 2.0, LONG / 2):
        handle = pool.with_options(timeout=limit).submit(function)
        with pytest.raises(TaskTimeout) as caught:
            handle.result(LONG)
        assert caught.value.timeout == limit
        assert caught.value.stack is not None
        stack = caught.value.stack
        if getattr(function, "__name__", "") in stack:
            break
        # The worker had not called the function yet, but was importing it or waiting for a core: try again.
    assert getattr(function, "__name__", "") in stack
    assert pool.submit(tasks.square, 3).result(LONG) == 9


def test_a_running_task_can_be_cancelled(pool: TaskPool, tmp_path: Path) -> None:
    path = tmp_path / "running"
    handle = pool.submit(tasks.ignore_interrupts, str(path))
    assert pool.submit(tasks.wait_for_file, str(path)).result(LONG)
    assert handle.running()
    assert handle.worker_pid is not None
    assert handle.cancel()
    assert handle.cancelled()
    assert repr(handle) == "<TaskHandle 1 cancelled>"
    with pytest.raises(TaskCancelled):
        handle.result(LONG)
    with pytest.raises(TaskCancelled):
        handle.exception(LONG)
    assert pool.map(tasks.square, range(4)) == [0, 1, 4, 9]


def test_a_map_runs_as_long_as_one_of_its_tasks(same_pool: TaskPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handle = same_pool.map_async(tasks.wait_for_file, [str(gate)] * 3)
    wait_until(handle.running, "it runs")
    gate.touch()
    assert handle.get(LONG) == [str(gate)] * 3
    assert not handle.running()


def test_results_of_a_lazy_map_one_by_one(same_pool: TaskPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    results = same_pool.imap(tasks.wait_for_file, [str(gate)])
    with pytest.raises(WaitTimeout):
        results.next(0)
    assert repr(results) == "<ImapIterator of wait_for_file, ordered, all read, 1 items under way>"
    gate.touch()
    assert results.next(LONG) == str(gate)
    with pytest.raises(StopIteration):
        results.next(LONG)


def test_each_object_tells_its_state(start_method: str) -> None:
    with TaskPool(1, context=start_method, name="some") as pool:
        assert repr(pool) == "<TaskPool 'some' running processes=1 pending=0>"
        assert repr(pool.with_options(retries=1)) == f"<{pool!r} with timeout=None, retries=1>"
        assert repr(pool.executor) == f"<PoolExecutor open over {pool!r}>"
        with pool.share([1]) as shared:
            assert repr(shared) == f"<Shared list, {shared.nbytes} bytes>"
        assert repr(shared) == "<Shared closed>"


def test_what_cannot_be_called_back_is_refused_at_once(same_pool: TaskPool) -> None:
    wrong: Any = "print"
    before = same_pool.statistics().submitted
    with pytest.raises(TypeError, match="a callback must be callable or None; got 'print'"):
        same_pool.apply_async(tasks.square, (3,), callback=wrong)
    with pytest.raises(TypeError, match="a callback must be callable or None; got 'print'"):
        same_pool.map_async(tasks.square, [3], error_callback=wrong)
    assert same_pool.statistics().submitted == before


def test_a_queued_task_that_is_cancelled_never_begins(same_pool: TaskPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    holders = [same_pool.submit(tasks.wait_for_file, str(gate)) for _ in range(2)]
    handle = same_pool.submit(tasks.touch, str(tmp_path / "begun"))
    assert handle.cancel()
    gate.touch()
    for holder in holders:
        holder.result(LONG)
    assert same_pool.submit(tasks.square, 3).result(LONG) == 9
    assert not (tmp_path / "begun").exists()
    with pytest.raises(TaskCancelled):
        handle.result(0)


def test_waiting_has_an_end_and_the_task_goes_on(same_pool: TaskPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    handle = same_pool.submit(tasks.wait_for_file, str(gate))
    with pytest.raises(WaitTimeout):
        handle.result(0.05)
    with pytest.raises(WaitTimeout):
        handle.exception(0)
    handle.wait(0.01)
    assert not handle.ready()
    with pytest.raises(ValueError, match="not ended"):
        handle.successful()
    gate.touch()
    assert handle.get(LONG) == str(gate)


def test_handles_are_futures(same_pool: TaskPool) -> None:
    handles = [same_pool.submit(tasks.square, n) for n in range(10)]
    assert all(isinstance(handle, concurrent.futures.Future) for handle in handles)
    done, not_done = concurrent.futures.wait(handles, timeout=LONG)
    assert len(done) == 10
    assert not not_done
    handles = [same_pool.submit(tasks.square, n) for n in range(10)]
    assert sorted(handle.result() for handle in concurrent.futures.as_completed(handles, timeout=LONG)) == [
        n * n for n in range(10)
    ]


def test_an_error_fails_its_own_item(pool: TaskPool) -> None:
    for chunksize in (1, 3, 10):
        iterator = pool.imap(tasks.fail_if_odd, range(10), chunksize=chunksize)
        outcomes: list[object] = []
        while True:
            try:
                outcomes.append(next(iterator))
            except StopIteration:
                break
            except ValueError as error:
                outcomes.append(error.args[0])
        assert outcomes == list(range(10))
    with pytest.raises(ValueError, match="1"):
        pool.map(tasks.fail_if_odd, range(10))
    with pytest.raises(SerializationError):
        pool.map(tasks.unpicklable_if_odd, range(10), chunksize=5)
    assert next(pool.imap(tasks.unpicklable_if_odd, range(10), chunksize=5)) == 0
    with pytest.raises(RuntimeError, match="StopIteration"):
        pool.map(tasks.stop_iteration, range(3), chunksize=3)


def outcomes_of(results: Iterator[int]) -> list[object]:
    """Results, and the classes of the errors among them."""
    outcomes: list[object] = []
    while True:
        try:
            outcomes.append(next(results))
        except StopIteration:
            return outcomes
        except Exception as error:
            outcomes.append(type(error))


def test_a_death_in_a_chunk_fails_the_item_that_ran(pool: TaskPool) -> None:
    function = functools.partial(tasks.square_or_die, victim=13)
    expected: list[object] = [n * n for n in range(40)]
    expected[13] = WorkerCrashed
    assert outcomes_of(pool.imap(function, range(40), chunksize=20)) == expected
    unordered = outcomes_of(pool.imap_unordered(function, range(40), chunksize=20))
    assert sorted(unordered, key=str) == sorted(expected, key=str)
    with pytest.raises(WorkerCrashed):
        pool.map(function, range(40), chunksize=20)


def test_each_item_of_a_chunk_whose_worker_dies_runs_once(pool: TaskPool, tmp_path: Path) -> None:
    path = tmp_path / "notes"
    function = functools.partial(tasks.note_and_die, victim=7, path=str(path))
    expected: list[object] = [n * n for n in range(20)]
    expected[7] = WorkerCrashed
    assert outcomes_of(pool.imap(function, range(20), chunksize=20)) == expected
    assert sorted(map(int, path.read_text().split())) == list(range(20))


def test_a_death_in_a_chunk_is_tried_again_as_often_as_asked(pool: TaskPool, tmp_path: Path) -> None:
    view = pool.with_options(retries=1)
    once = functools.partial(tasks.square_or_die_once, victim=5, path=str(tmp_path / "once"))
    assert view.map(once, range(12), chunksize=6) == [n * n for n in range(12)]
    notes = tmp_path / "notes"
    always = functools.partial(tasks.note_and_die, victim=3, path=str(notes))
    expected: list[object] = [n * n for n in range(12)]
    expected[3] = WorkerCrashed
    assert outcomes_of(view.imap(always, range(12), chunksize=6)) == expected
    assert sorted(map(int, notes.read_text().split())) == sorted([*range(12), 3])


def test_a_chunk_whose_unpickling_kills_the_worker_fails_as_a_whole(pool: TaskPool) -> None:
    items = [1, 2, tasks.DiesWhenUnpickled(), 4, 5, 6]
    outcomes = outcomes_of(pool.imap(tasks.echo, items, chunksize=3))
    assert outcomes == [WorkerCrashed] * 3 + [4, 5, 6]


def test_a_worker_that_dies_idle_is_replaced(pool: TaskPool) -> None:
    victims = [worker.pid for worker in pool.workers()]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    assert pool.map(tasks.square, range(10)) == [n * n for n in range(10)]
    # On a busy machine one of them may take a while to die.
    wait_until(lambda: not {worker.pid for worker in pool.workers()} & set(victims), "both are replaced")


def test_big_arguments_and_results(same_pool: TaskPool) -> None:
    data = os.urandom(300_000)
    assert same_pool.submit(tasks.echo, data).result(LONG) == data
    array = bytearray(data)
    back = same_pool.submit(tasks.echo, array).result(LONG)
    assert back == array
    back[0] ^= 1
    assert same_pool.map(tasks.echo, [data] * 3, chunksize=2) == [data] * 3


def test_stacks(same_pool: TaskPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Wait as long as needed for the stacks: on a busy machine a worker may take long to send it.
    monkeypatch.setattr(_insight, "_STACKS_SECONDS", LONG)
    gate = tmp_path / "gate"
    begun = tmp_path / "begun"
    handle = same_pool.submit(tasks._touch_and_wait_for, str(begun), str(gate))
    same_pool.submit(tasks.wait_for_file, str(begun)).result(LONG)
    assert any("_touch_and_wait_for" in stack for stack in same_pool.stacks().values())
    gate.touch()
    handle.result(LONG)


# -- pools with special options or ends ----------------------------------------------------------------------


def test_the_initializer_runs_in_each_worker(start_method: str) -> None:
    with TaskPool(
        processes=1, initializer=tasks.initialize, initargs=(1, "two"), context=start_method
    ) as pool:
        assert pool.apply(tasks.state) == [1, "two"]


def test_a_failing_initializer_fails_every_pending_task_once(start_method: str, tmp_path: Path) -> None:
    # The initializer waits until the tasks have been submitted, and only then raises.
    gate = tmp_path / "gate"
    with TaskPool(
        processes=2, initializer=tasks.initialize_badly, initargs=(str(gate),), context=start_method
    ) as pool:
        handles = [pool.submit(tasks.square, n) for n in range(5)]
        mapped = pool.map_async(tasks.square, range(10))
        called: list[object] = []
        handles[0].add_done_callback(called.append)
        assert not any(handle.done() for handle in handles)
        gate.touch()
        pending: list[TaskHandle[Any]] = [*handles, mapped]
        for handle in pending:
            error = handle.exception(LONG)
            assert isinstance(error, InitializerFailed)
            assert "no licence" in str(error)
            assert isinstance(error.__cause__, LookupError)
            with pytest.raises(InitializerFailed, match="no licence"):
                handle.result(0)
        # From now on the call itself raises, instead of returning a handle that fails.
        with pytest.raises(InitializerFailed, match="no licence") as refused:
            pool.submit(tasks.square, 1)
        assert isinstance(refused.value.__cause__, LookupError)
        with pytest.raises(InitializerFailed, match="no licence"):
            pool.map(tasks.square, [1])
    # When the pool has ended, every callback has been called.
    assert called == [handles[0]]


def test_an_initializer_that_exits_breaks_the_pool(start_method: str) -> None:
    with TaskPool(
        processes=1, initializer=tasks.exit_in_initializer, initargs=(5,), context=start_method
    ) as pool:
        with pytest.raises(PoolBroken, match="exit code 5") as caught:
            pool.submit(tasks.square, 1).result(LONG)
        assert "running the initializer exit_in_initializer, which may be what ended it" in str(caught.value)
        assert "main module" not in str(caught.value), "the main module had been imported"
        with pytest.raises(PoolBroken):
            pool.submit(tasks.square, 1)


def test_closing_waits_for_what_was_submitted(start_method: str) -> None:
    with TaskPool(processes=2, context=start_method) as pool:
        handles = [pool.submit(tasks.square, n) for n in range(100)]
    assert [handle.result(0) for handle in handles] == [n * n for n in range(100)]
    with pytest.raises(ClosedError):
        pool.submit(tasks.square, 1)
    with pytest.raises(RuntimeError):
        pool.executor.submit(tasks.square, 1)


def test_terminating_cancels_what_is_pending(start_method: str) -> None:
    pool = TaskPool(processes=1, context=start_method, grace_period=0.2)
    running = pool.submit(tasks.hang)
    queued = pool.submit(tasks.square, 1)
    pool.terminate()
    assert pool.join(LONG)
    for handle in (running, queued):
        with pytest.raises(TaskCancelled):
            handle.result(0)


def test_workers_are_replaced_after_so_many_tasks(start_method: str) -> None:
    with TaskPool(processes=1, maxtasksperchild=3, context=start_method) as pool:
        pids = [pool.apply(tasks.pid_of_worker) for _ in range(9)]
    assert [pids.count(pid) for pid in dict.fromkeys(pids)] == [3, 3, 3]


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_all_workers_killed_again_and_again(start_method: str) -> None:
    with TaskPool(processes=2, context=start_method) as pool:
        for _ in range(2):
            pool.map(tasks.nothing, range(4))
            for worker in pool.workers():
                os.kill(worker.pid, signal.SIGKILL)
            assert pool.with_options(retries=3).map(tasks.square, range(6)) == [n * n for n in range(6)]
