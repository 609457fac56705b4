"""`mpkit.compat` has the same names and signatures as the standard library."""

from __future__ import annotations

import concurrent.futures
import importlib
import inspect
import multiprocessing
import multiprocessing.pool
import multiprocessing.queues
import multiprocessing.synchronize
import sys
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.context import BaseContext
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, TaskPool, WorkerProcess, compat
from mpkit.compat import futures
from tests.contract import compat_tasks as tasks
from tests.helpers.processes import run_python
from tests.helpers.waiting import PATIENCE, wait_until

OURS = ["Process", "Queue", "JoinableQueue", "SimpleQueue", "Lock", "Pool", "get_context"]


def parameters(function: Callable[..., Any]) -> list[tuple[str, Any, Any]]:
    """Names, kinds and defaults, without annotations and without `self`."""
    found = inspect.signature(function).parameters.values()
    return [(each.name, each.kind, each.default) for each in found if each.name != "self"]


def methods(kind: type) -> list[str]:
    return [name for name, value in inspect.getmembers(kind, callable) if not name.startswith("_")]


@pytest.mark.parametrize("kind", ["Queue", "JoinableQueue", "SimpleQueue"])
def test_a_queue_is_one_of_the_standard_library(kind: str) -> None:
    """Libraries check the type: `logging.config` of Python 3.13.0 accepts only the standard library's."""
    queue = getattr(compat, kind)()
    assert isinstance(queue, getattr(multiprocessing.queues, kind))
    queue.put(1)
    assert queue.get() == 1
    queue.close()


def test_pools_and_what_they_return_are_of_the_standard_library() -> None:
    """Libraries check the type: dask that of a pool, adaptive that of an executor."""
    with compat.Pool(1) as pool:
        assert isinstance(pool, multiprocessing.pool.Pool)
        assert isinstance(pool.apply_async(abs, (1,)), multiprocessing.pool.AsyncResult)
        for result in (pool.map_async(abs, [1]), pool.starmap_async(abs, [(1,)])):
            assert isinstance(result, multiprocessing.pool.MapResult)
        for results in (pool.imap(abs, [-1]), pool.imap_unordered(abs, [-1])):
            assert isinstance(results, multiprocessing.pool.IMapIterator)
            assert list(results) == [1]
    with futures.ProcessPoolExecutor(1) as executor:
        assert isinstance(executor, concurrent.futures.ProcessPoolExecutor)
    with compat.pool.ThreadPool(1) as threads:
        assert isinstance(threads, compat.Pool)


def test_every_public_name_of_multiprocessing_is_there() -> None:
    assert set(multiprocessing.__all__) <= set(compat.__all__)
    # Some public names are not in `__all__`: the log levels.
    for name in set(dir(multiprocessing)) - {"sys"}:
        assert name.startswith("_") or hasattr(compat, name), name


def test_what_is_not_ours_is_the_standard_library_s_own() -> None:
    for name in set(multiprocessing.__all__) - set(OURS):
        assert getattr(compat, name) == getattr(multiprocessing, name), name


CLASSES: list[tuple[type, type]] = [
    (compat.Process, multiprocessing.Process),
    (compat.Queue, multiprocessing.queues.Queue),
    (compat.JoinableQueue, multiprocessing.queues.JoinableQueue),
    (compat.SimpleQueue, multiprocessing.queues.SimpleQueue),
    (compat.Lock, multiprocessing.synchronize.Lock),
    (compat.Pool, multiprocessing.pool.Pool),
    (compat.pool.ThreadPool, multiprocessing.pool.ThreadPool),
    (compat.pool.AsyncResult, multiprocessing.pool.AsyncResult),
    (compat.pool.IMapIterator, multiprocessing.pool.IMapIterator),
    (futures.ProcessPoolExecutor, concurrent.futures.ProcessPoolExecutor),
]
#: Classes whose instances only pools make, so that their constructors need not be the same.
MADE_BY_POOLS = {compat.pool.AsyncResult, compat.pool.IMapIterator}
#: Parameters of constructors that are intentionally different.
DIFFERENCES: dict[type, set[str]] = {
    # mpkit accepts it on every version of Python.
    futures.ProcessPoolExecutor: {"max_tasks_per_child"} if sys.version_info < (3, 11) else set(),
}
#: Each of these is a class in mpkit, but a function in `multiprocessing`, behind which there is a class with
#: one more parameter: the context, which comes last.
CONTEXTS = {
    "Pool": "context",
    "Queue": "ctx",
    "JoinableQueue": "ctx",
    "SimpleQueue": "ctx",
    "Lock": "ctx",
}


@pytest.mark.parametrize("name", OURS)
def test_what_is_ours_has_the_same_signature(name: str) -> None:
    ours = parameters(getattr(compat, name))
    if name in CONTEXTS:
        assert ours.pop()[0] == CONTEXTS[name]
    assert ours == parameters(getattr(multiprocessing, name))


@pytest.mark.parametrize("ours, theirs", [each for each in CLASSES if each[0] not in MADE_BY_POOLS])
def test_every_class_is_made_in_the_same_way(ours: type, theirs: type) -> None:
    different = DIFFERENCES.get(ours, set())
    mine, its = parameters(ours), parameters(theirs)
    assert {name for name, *_ in mine} ^ {name for name, *_ in its} == different
    # The standard library requires it; in mpkit it is optional.
    different = different | {"ctx"}
    assert [each for each in mine if each[0] not in different] == [
        each for each in its if each[0] not in different
    ]


@pytest.mark.parametrize("ours, theirs", CLASSES)
def test_every_method_is_there_with_the_same_signature(ours: type, theirs: type) -> None:
    # Pool.Process is an undocumented internal of the standard library. mpkit accepts buffersize on every
    # version of Python.
    for name in set(methods(theirs)) - {"Process"}:
        expected = parameters(getattr(theirs, name))
        found = [
            each for each in parameters(getattr(ours, name)) if each[0] != "buffersize" or each in expected
        ]
        assert found == expected, name


def test_a_lock_has_the_signatures_that_are_documented() -> None:
    # The standard library sets `acquire` and `release` on each instance, so its class has none to compare.
    (block, timeout) = parameters(compat.Lock.acquire)
    assert (block[0], block[2], timeout[0], timeout[2]) == ("block", True, "timeout", None)
    assert parameters(compat.Lock.release) == []


def test_every_public_name_of_concurrent_futures_is_there() -> None:
    assert set(concurrent.futures.__all__) <= set(futures.__all__)
    for name in set(concurrent.futures.__all__) - {"ProcessPoolExecutor"}:
        assert getattr(futures, name) is getattr(concurrent.futures, name), name
    ours = parameters(futures.ProcessPoolExecutor)
    if sys.version_info < (3, 11):
        # mpkit accepts it on every version of Python.
        ours = [each for each in ours if each[0] != "max_tasks_per_child"]
    assert ours == parameters(concurrent.futures.ProcessPoolExecutor)


def test_they_are_the_classes_of_mpkit_inside() -> None:
    assert issubclass(compat.Process, WorkerProcess)
    assert issubclass(compat.Lock, Lock)
    queue: compat.Queue[int] = compat.Queue()
    assert isinstance(queue._queue, BoundedQueue)
    queue.close()
    with compat.Pool(1) as pool:
        assert isinstance(pool._task_pool, TaskPool)
    assert issubclass(futures.ProcessPoolExecutor, concurrent.futures.Executor)


@pytest.mark.parametrize("name", ["connection", "managers", "shared_memory", "dummy", "process", "util"])
def test_submodules_are_the_standard_library_s_own(name: str) -> None:
    assert getattr(compat, name) is sys.modules[f"multiprocessing.{name}"]


SUBMODULES = [
    "compat.connection",
    "compat.context",
    "compat.dummy",
    "compat.managers",
    "compat.pool",
    "compat.process",
    "compat.queues",
    "compat.reduction",
    "compat.shared_memory",
    "compat.sharedctypes",
    "compat.synchronize",
    "compat.futures.process",
    "compat.futures.thread",
    *(["compat.futures.interpreter"] if hasattr(concurrent.futures, "InterpreterPoolExecutor") else []),
]


@pytest.mark.parametrize("path", SUBMODULES)
def test_submodules_can_be_imported_and_have_every_public_name(path: str) -> None:
    package, _, name = path.rpartition(".")
    module = importlib.import_module(f"mpkit.{path}")
    assert getattr(importlib.import_module(f"mpkit.{package}"), name) is module
    theirs = importlib.import_module(
        path.replace("compat.futures", "concurrent.futures").replace("compat", "multiprocessing")
    )
    for public in (one for one in vars(theirs) if not one.startswith("_")):
        assert hasattr(module, public), public
    for public in getattr(module, "__all__", ()):
        assert hasattr(theirs, public), public


def test_submodules_have_the_classes_of_mpkit() -> None:
    assert compat.pool.Pool is compat.Pool
    assert compat.pool.ThreadPool is multiprocessing.pool.ThreadPool
    assert getattr(compat.pool, "MaybeEncodingError") is getattr(multiprocessing.pool, "MaybeEncodingError")  # noqa: B009
    assert compat.queues.Queue is compat.Queue
    assert compat.synchronize.Lock is compat.Lock
    assert compat.context.Process is compat.Process
    assert isinstance(compat.get_context("spawn"), compat.context.SpawnContext)
    assert futures.process.ProcessPoolExecutor is futures.ProcessPoolExecutor


def test_submodules_are_loaded_on_first_use() -> None:
    program = (
        "import sys, mpkit.compat; print(*(name for name in sys.modules if name.startswith('mpkit.compat.')))"
    )
    loaded = run_python("-c", program).stdout.split()
    assert loaded
    assert all(name.removeprefix("mpkit.compat.").startswith("_") for name in loaded), loaded


def test_the_cause_of_what_a_task_raises_is_of_the_class_that_programs_import() -> None:
    with compat.Pool(1) as pool, pytest.raises(KeyError) as from_pool:
        pool.apply(tasks.fail, (1,))
    assert isinstance(from_pool.value.__cause__, compat.pool.RemoteTraceback)
    with futures.ProcessPoolExecutor(1) as executor:
        error = executor.submit(tasks.fail, 1).exception()
    assert error is not None
    # In the standard library, executors use another class, which is private.
    assert isinstance(error.__cause__, getattr(futures.process, "_RemoteTraceback"))  # noqa: B009
    assert "KeyError" in getattr(error.__cause__, "tb")  # noqa: B009


def test_a_pool_has_the_processes_that_are_its_workers() -> None:
    # Private names that programs use to watch the workers.
    with compat.Pool(2) as pool:
        assert pool._processes == 2
        workers = pool._pool
        assert len(workers) == 2
        assert set(workers) <= set(compat.active_children())
        result = pool.apply_async(tasks.sleep_for_ever)
        wait_until(result._handle.running, "the task has begun")
        for worker in workers:
            worker.terminate()
        with pytest.raises(BrokenProcessPool):
            result.get(PATIENCE)


def test_a_pool_tells_what_is_left_to_do() -> None:
    # Private names that programs use to show progress.
    gate: Any = compat.SimpleQueue()
    with compat.Pool(1) as pool:
        assert pool._cache == {}
        results = pool.map_async(tasks.take, [gate] * 3, chunksize=1)
        single = pool.apply_async(tasks.take, (gate,))
        assert sorted(pool._cache.values()) == ["take", "take"]
        assert results._number_left == 3
        wait_until(lambda: pool._taskqueue.qsize() == 3, "the first one has begun")
        gate.put(None)
        wait_until(lambda: results._number_left == 2, "one has ended")
        for _ in range(3):
            gate.put(None)
        assert single.get(PATIENCE) is None
        # Another thread may still be handling earlier outcomes.
        wait_until(lambda: results._number_left == 0, "the map has ended")
        wait_until(lambda: not pool._cache, "all have ended")
        wait_until(pool._taskqueue.empty, "nothing waits")
        with pytest.raises(AttributeError):
            getattr(single, "_number_left")  # noqa: B009
    gate.close()


def test_a_pool_and_an_executor_tell_whether_they_take_tasks() -> None:
    # Private names that programs use to decide whether they need a new one.
    with compat.Pool(1) as pool:
        assert pool._state == multiprocessing.pool.RUN
        pool.close()
        assert pool._state == multiprocessing.pool.CLOSE
    assert pool._state == multiprocessing.pool.TERMINATE
    executor = futures.ProcessPoolExecutor(1, initializer=tasks.fail, initargs=(1,))
    assert (executor._broken, executor._shutdown_thread) == (False, False)
    with pytest.raises(BrokenProcessPool):
        executor.submit(tasks.square, 2).result(PATIENCE)
    assert executor._broken
    executor.shutdown()
    assert executor._shutdown_thread


def test_an_executor_tells_what_is_left_to_do() -> None:
    gate: Any = compat.SimpleQueue()
    context = compat.get_context("spawn")
    with futures.ProcessPoolExecutor(1, context) as executor:
        assert executor._mp_context is context
        assert executor._pending_work_items == {}
        waiting = [executor.submit(tasks.take, gate) for _ in range(3)]
        assert len(executor._pending_work_items) == 3
        for _ in waiting:
            gate.put(None)
        for future in waiting:
            future.result(PATIENCE)
        wait_until(lambda: not executor._pending_work_items, "all have ended")
    gate.close()


def test_an_executor_has_the_processes_that_are_its_workers() -> None:
    # A private name. Before Python 3.14 it was the only way to end workers that hang.
    with futures.ProcessPoolExecutor(2) as executor:
        assert not executor._processes
        running = executor.submit(tasks.sleep_for_ever)
        wait_until(running.running, "the task has begun")
        for pid, process in executor._processes.items():
            assert process.pid == pid
            process.terminate()
        with pytest.raises(BrokenProcessPool):
            running.result(PATIENCE)


def test_an_executor_tells_how_many_workers_it_has() -> None:
    # A private name of the standard library that other libraries read all the same.
    with futures.ProcessPoolExecutor(1) as executor:
        assert getattr(executor, "_max_workers") == 1  # noqa: B009
        with pytest.raises(AttributeError):
            setattr(executor, "_max_workers", 2)  # noqa: B010
    with TaskPool(2) as pool:
        assert getattr(pool.executor, "_max_workers") == 2  # noqa: B009


@pytest.mark.parametrize("name", ["nonsense", "_private"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(AttributeError, match=name):
        getattr(compat, name)


def test_a_context_is_a_context_of_the_standard_library(start_method: str) -> None:
    context = compat.get_context(start_method)
    assert isinstance(context, BaseContext)
    assert context.get_start_method() == start_method
    assert context.get_context() is context
    assert context.get_context("spawn") is compat.get_context("spawn")
    assert issubclass(context.Process, compat.Process)
    for name in set(OURS) - {"Process"}:
        ours, theirs = getattr(context, name), getattr(multiprocessing.get_context(start_method), name)
        assert parameters(ours) == parameters(theirs), name
    for name in dir(multiprocessing.get_context(start_method)):
        assert hasattr(context, name), name


def test_a_context_that_is_not_there_is_refused_as_in_the_standard_library() -> None:
    with pytest.raises(ValueError, match="cannot find context for 'nonsense'"):
        compat.get_context("nonsense")


def test_the_default_start_method_is_the_running_python_s_own() -> None:
    assert compat._processes.default_start_method() == (
        multiprocessing.get_start_method(allow_none=True) or multiprocessing.get_all_start_methods()[0]
    )
