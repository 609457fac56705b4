"""`mpkit.compat` behaves as `multiprocessing` does, under every start method."""

from __future__ import annotations

import concurrent.futures
import gc
import multiprocessing
import multiprocessing.pool
import os
import pickle
import queue
import signal
import time
from concurrent.futures.process import BrokenProcessPool
from typing import Any, cast

import pytest

from mpkit import compat
from mpkit.compat import _contexts, _processes
from mpkit.errors import SerializationError, WorkerCrashed
from tests.contract import compat_tasks as tasks
from tests.helpers.processes import reap
from tests.helpers.waiting import PATIENCE


@pytest.fixture
def context(start_method: str) -> Any:
    return compat.get_context(start_method)


# -- processes -----------------------------------------------------------------------------------------------


def test_a_process_runs_its_target(context: Any) -> None:
    gate, results = context.SimpleQueue(), context.SimpleQueue()
    process = context.Process(
        target=tasks.put_pid_when_let_through, args=(gate, results), name="putter", daemon=True
    )
    assert process.name == "putter"
    assert process.daemon
    with reap(process):
        assert process in compat.active_children()
        gate.put(None)
        assert results.get() == process.pid
    assert process.exitcode == 0
    assert isinstance(process, compat.Process)
    gate.close()
    results.close()


def test_an_exit_code_is_the_process_s(context: Any) -> None:
    process = context.Process(target=tasks.exit_with, args=(3,))
    with reap(process):
        pass
    assert process.exitcode == 3


def test_a_killed_process_has_its_signal_as_exit_code() -> None:
    process = compat.Process(target=tasks.sleep_for_ever)
    with reap(process):
        process.kill()
    assert process.exitcode == -signal.SIGKILL


class Subclass(compat.Process):
    def __init__(self, results: compat.SimpleQueue[int]) -> None:
        super().__init__()
        self.results = results

    def run(self) -> None:
        self.results.put(42)


def test_a_subclass_with_run() -> None:
    results: compat.SimpleQueue[int] = compat.SimpleQueue()
    with reap(Subclass(results)):
        assert results.get() == 42
    results.close()


@pytest.mark.parametrize("module", [multiprocessing, compat])
def test_a_process_may_be_sent_along_with_another_before_it_is_started(
    module: Any, start_method: str
) -> None:
    team = tasks.Team(module.get_context(start_method))
    with reap(team.first):
        assert [team.results.get() for _ in range(3)] == ["refused"] * 3
    with reap(team.second):
        assert team.results.get() == 9
    assert (team.first.exitcode, team.second.exitcode) == (0, 0)
    team.results.close()


# -- queues --------------------------------------------------------------------------------------------------


def test_queues_travel_to_a_process_and_back(context: Any) -> None:
    inbox, outbox = context.Queue(), context.JoinableQueue()
    with reap(context.Process(target=tasks.echo, args=(inbox, outbox))):
        items = [1, "two", {"three": [3]}]
        for item in items:
            inbox.put(item)
        assert [outbox.get(timeout=PATIENCE) for _ in items] == items
        inbox.put(None)
        for _ in items:
            outbox.task_done()
        outbox.join()
    with pytest.raises(ValueError, match="task_done"):
        outbox.task_done()
    inbox.close()
    outbox.close()


def test_a_queue_keeps_the_documented_semantics() -> None:
    q: compat.Queue[int] = compat.Queue(2)
    assert q.empty()
    q.put(1)
    q.put(obj=2, block=True, timeout=1)
    assert (q.qsize(), q.full(), q.empty()) == (2, True, False)
    with pytest.raises(queue.Full):
        q.put_nowait(3)
    with pytest.raises(queue.Full):
        q.put(3, timeout=0.01)
    assert [q.get_nowait(), q.get(True, 1)] == [1, 2]
    with pytest.raises(queue.Empty):
        q.get_nowait()
    with pytest.raises(queue.Empty):
        q.get(timeout=0.01)
    # Like multiprocessing, it treats a negative time limit as 0.
    with pytest.raises(queue.Empty):
        q.get(timeout=-1)
    q.close()
    q.join_thread()
    q.cancel_join_thread()
    with pytest.raises(ValueError, match="closed"):
        q.put(1)


def test_an_item_that_cannot_be_pickled_is_refused_at_once() -> None:
    q: compat.Queue[object] = compat.Queue()
    with pytest.raises(pickle.PicklingError):
        q.put(lambda: None)
    assert q.empty()
    q.close()


def test_a_simple_queue_has_get_and_put() -> None:
    q: compat.SimpleQueue[str] = compat.SimpleQueue()
    assert q.empty()
    q.put("x")
    assert not q.empty()
    assert q.get() == "x"
    q.close()


# -- locks ---------------------------------------------------------------------------------------------------


def test_a_lock_guards_a_value_of_the_standard_library(context: Any) -> None:
    lock, value = context.Lock(), context.RawValue("q", 0)
    with reap(*(context.Process(target=tasks.guarded_add, args=(lock, value, 200)) for _ in range(2))):
        pass
    assert value.value == 400
    lock.close()


def test_a_lock_behaves_as_documented() -> None:
    lock = compat.Lock()
    assert lock.acquire()
    assert not lock.acquire(block=False)
    assert not lock.acquire(True, 0.01)
    assert not lock.acquire(True, -5)
    lock.release()
    with pytest.raises(ValueError, match="released"):
        lock.release()
    with lock as got:
        assert got is True
    lock.close()


def test_a_condition_of_the_standard_library_takes_our_lock() -> None:
    condition = compat.Condition(cast("Any", compat.Lock()))
    ready: compat.SimpleQueue[str] = compat.SimpleQueue()
    with reap(compat.Process(target=tasks.wait_on, args=(condition, ready))):
        assert ready.get() == "waiting"
        with condition:
            condition.notify()
        assert ready.get() == "woken"
    ready.close()


def test_a_value_of_the_standard_library_takes_our_lock() -> None:
    lock = compat.Lock()
    value = compat.Value("i", 1, lock=cast("Any", lock))
    value.value += 1
    assert value.value == 2
    assert value.get_lock() is lock
    lock.close()


# -- pools ---------------------------------------------------------------------------------------------


def test_a_pool_has_all_its_verbs(context: Any) -> None:
    with context.Pool(2, tasks.initialize, ("ready",)) as pool:
        assert isinstance(pool, compat.Pool)
        assert pool.apply(tasks.add, (1,), {"y": 2}) == 3
        assert pool.apply_async(tasks.add, (1,), {"y": 2}).get(PATIENCE) == 3
        assert pool.map(tasks.square, range(5)) == [0, 1, 4, 9, 16]
        assert pool.map_async(tasks.square, range(5), 2).get(PATIENCE) == [0, 1, 4, 9, 16]
        assert pool.starmap(tasks.add, [(1, 2), (3, 4)]) == [3, 7]
        assert pool.starmap_async(tasks.add, [(1, 2)]).get(PATIENCE) == [3]
        assert list(pool.imap(tasks.square, range(5))) == [0, 1, 4, 9, 16]
        assert sorted(pool.imap_unordered(tasks.square, range(5), chunksize=2)) == [0, 1, 4, 9, 16]
        assert pool.apply(tasks.initialized) == ["ready"]
        assert len({worker.pid for worker in pool._task_pool.workers()}) == 2


def test_workers_are_started_as_the_context_says() -> None:
    for name, context in _contexts._contexts.items():
        with context.Pool(1) as pool:
            assert pool._task_pool._engine.options.context.get_start_method() == name


@pytest.mark.parametrize("module", [compat, multiprocessing])
def test_a_pool_takes_a_context(module: Any, start_method: str) -> None:
    with compat.pool.Pool(1, context=module.get_context(start_method)) as pool:
        assert pool._task_pool._engine.options.context.get_start_method() == start_method


def test_a_pool_refuses_the_name_of_a_start_method_as_its_context() -> None:
    with pytest.raises(AttributeError):
        compat.pool.Pool(1, context=cast("Any", "spawn"))


def test_the_standard_library_s_own_executor_takes_a_context(context: Any) -> None:
    with concurrent.futures.ProcessPoolExecutor(2, mp_context=context) as executor:
        assert executor.submit(tasks.add, 1, y=2).result(PATIENCE) == 3
        assert list(executor.map(tasks.square, range(20), timeout=PATIENCE)) == [x * x for x in range(20)]
        with pytest.raises(BrokenProcessPool):
            executor.submit(tasks.crash).result(PATIENCE)


def test_the_standard_library_s_own_pool_takes_a_context(context: Any) -> None:
    pool = multiprocessing.pool.Pool(2, tasks.initialize, ("ready",), 1, context)
    assert pool.apply_async(tasks.initialized).get(PATIENCE) == ["ready"]
    assert pool.map_async(tasks.square, range(4), 1).get(PATIENCE) == [0, 1, 4, 9]
    pool.close()
    pool.join()
    with multiprocessing.pool.Pool(1, context=context) as pool:
        assert list(pool.imap(tasks.square, [3])) == [9]


def test_a_pool_reports_errors_as_the_standard_library_does() -> None:
    with compat.Pool(1) as pool:
        with pytest.raises(KeyError, match="7") as caught:
            pool.apply(tasks.fail, (7,))
        assert "RemoteTraceback" in repr(type(caught.value.__cause__))
        with pytest.raises(KeyError):
            pool.map(tasks.fail, [1])
        with pytest.raises(KeyError):
            next(pool.imap(tasks.fail, [1]))
        with pytest.raises(compat.pool.MaybeEncodingError):
            pool.apply(tasks.unpicklable)
        with pytest.raises(compat.pool.MaybeEncodingError):
            next(pool.imap_unordered(tasks.unpicklable, [1]))
        with pytest.raises(WorkerCrashed):
            pool.apply(tasks.crash)
        assert pool.apply(tasks.square, (3,)) == 9


def test_next_raises_the_error_of_an_argument_that_cannot_be_pickled() -> None:
    with compat.Pool(1) as pool:
        results = pool.imap(tasks.square, [1, cast("Any", lambda: 2), 3])
        assert next(results) == 1
        with pytest.raises((pickle.PicklingError, AttributeError), match="lambda"):
            next(results)
        assert list(results) == [9]


def test_get_raises_the_error_of_an_argument_that_cannot_be_pickled() -> None:
    errors: list[BaseException] = []
    with compat.Pool(1) as pool:
        result = pool.apply_async(tasks.square, (lambda: 1,), error_callback=errors.append)
        result.wait(PATIENCE)
        assert result.ready()
        assert not result.successful()
        # The standard library raises different types on different versions of Python.
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            result.get()
        assert len(errors) == 1


def test_a_result_reports_whether_it_is_ready_and_successful() -> None:
    event = compat.Event()
    with compat.Pool(1, initializer=_keep, initargs=(event,)) as pool:
        result = pool.apply_async(_wait_for_kept, (5,))
        assert not result.ready()
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        with pytest.raises(compat.TimeoutError):
            result.get(timeout=0.01)
        result.wait(0.01)
        event.set()
        result.wait(PATIENCE)
        assert result.ready()
        assert result.successful()
        assert result.get() == 5
        failed = pool.apply_async(tasks.fail, (1,))
        failed.wait()
        assert not failed.successful()


_kept: list[Any] = []


def _keep(event: Any) -> None:
    _kept.append(event)


def _wait_for_kept(x: int) -> int:
    return tasks.wait_for(_kept[-1], x)


def test_callbacks_get_the_result_or_the_error() -> None:
    seen: compat.SimpleQueue[object] = compat.SimpleQueue()
    with compat.Pool(1) as pool:
        pool.apply_async(tasks.square, (3,), callback=seen.put)
        assert seen.get() == 9
        pool.map_async(tasks.square, [1, 2], callback=seen.put)
        assert seen.get() == [1, 4]
        pool.apply_async(tasks.unpicklable, error_callback=lambda error: seen.put(type(error).__name__))
        assert seen.get() == "MaybeEncodingError"
    seen.close()


def test_leaving_the_block_terminates() -> None:
    started = time.monotonic()
    with compat.Pool(2) as pool:
        results = [pool.apply_async(tasks.sleep_for_ever) for _ in range(4)]
        pids = [worker.pid for worker in pool._task_pool.workers()]
    assert time.monotonic() - started < PATIENCE
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
    assert all(result.ready() for result in results)
    with pytest.raises(ValueError, match="pool"):
        pool.apply(tasks.square, (1,))


def test_close_and_join_finish_what_there_is() -> None:
    pool = compat.Pool(2)
    results = pool.map_async(tasks.square, range(100))
    with pytest.raises(ValueError, match="open"):
        pool.join()
    pool.close()
    with pytest.raises(ValueError, match="pool"):
        pool.apply_async(tasks.square, (1,))
    pool.join()
    assert results.get() == [x * x for x in range(100)]


def test_an_imap_survives_close_and_join() -> None:
    # As in an example of the standard library, which closes the pool before it takes the results.
    pool = compat.Pool(2)
    iterator = pool.imap(tasks.square, iter(range(3000)))
    pool.close()
    pool.join()
    assert list(iterator) == [x * x for x in range(3000)]


def test_an_imap_whose_iterator_is_dropped_still_does_its_work(tmp_path: Any) -> None:
    pool = compat.Pool(2)
    pool.imap_unordered(_touch, [str(tmp_path / str(number)) for number in range(50)])
    gc.collect()
    pool.close()
    pool.join()
    assert len(list(tmp_path.iterdir())) == 50


def _touch(path: str) -> None:
    with open(path, "x"):
        pass


def test_a_pool_may_be_terminated_by_a_callback() -> None:
    ended: compat.SimpleQueue[str] = compat.SimpleQueue()

    def stop(_result: int) -> None:
        pool.terminate()
        ended.put("ended")

    pool = compat.Pool(1)
    pool.apply_async(tasks.square, (1,), callback=stop)
    assert ended.get() == "ended"
    pool.join()
    ended.close()


@pytest.mark.parametrize(
    "options, error",
    [
        ({"processes": 0}, ValueError),
        ({"processes": "3"}, TypeError),
        ({"initializer": 3}, TypeError),
        ({"maxtasksperchild": 0}, ValueError),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], error: type[Exception]) -> None:
    with pytest.raises(error):
        compat.Pool(**options)


def test_next_of_an_imap_takes_a_timeout() -> None:
    event = compat.Event()
    with compat.Pool(1, _keep, (event,)) as pool:
        iterator = pool.imap(_wait_for_kept, [1, 2])
        with pytest.raises(compat.TimeoutError):
            iterator.next(timeout=0.01)
        event.set()
        assert iterator.next() == 1
        assert next(iterator) == 2
        with pytest.raises(StopIteration):
            next(iterator)


# -- start methods -------------------------------------------------------------------------------------------


def test_a_default_start_method_that_is_set_before_the_start_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    process = compat.Process(target=time.sleep, args=(0,))
    monkeypatch.setattr(_processes, "default_start_method", lambda: "spawn")
    process.start()
    process.join()
    assert process._start_method == "spawn"


def test_what_cannot_be_sent_is_refused_at_the_start() -> None:
    process = compat.get_context("spawn").Process(target=lambda: None)
    with pytest.raises(SerializationError):
        process.start()
