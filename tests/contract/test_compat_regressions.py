"""`mpkit.compat` behaves as the standard library does, in cases where it once did not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import multiprocessing
import os
import pickle
import subprocess
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest

from mpkit import compat
from mpkit.compat import futures
from mpkit.errors import ClosedError, SerializationError
from mpkit.pool import TaskHandle, TaskPool
from tests.contract import compat_tasks as tasks
from tests.helpers.processes import forked, python, run_python
from tests.helpers.waiting import PATIENCE, wait_until

# -- the end of a program ------------------------------------------------------------------------------------

PROGRAM = """
import sys
import time

from mpkit.compat import futures
from mpkit.errors import ClosedError


def work():
    # Runs on long after the main module has been executed.
    time.sleep(0.2)
    print("done", flush=True)


def shut_down(keep):
    executor = futures.ProcessPoolExecutor(1)
    for _ in range(2):
        executor.submit(work)
    executor.shutdown(wait=False)
    if keep:
        globals()["executor"] = executor


if __name__ == "__main__":
    shut_down(sys.argv[1] == "keep")
"""


@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_a_program_that_has_not_waited_in_shutdown_waits_at_its_end(tmp_path: Any, keep: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run_python("-W", "error", program, keep)
    assert ended.stdout.split() == ["done", "done"]
    assert ended.stderr == ""


KEPT_TO_THE_LAST = """
import sys
import types

from mpkit.compat import futures

if __name__ == "__main__":
    # At the end Python empties the remaining modules, the one that was loaded last first. This keeps the
    # executor alive until `futures` is empty.
    sys.kept = [types, futures]
    types.kept = futures.ProcessPoolExecutor(1)
    types.kept.submit(abs, -1).result()
"""


def test_an_executor_may_outlive_its_module(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(KEPT_TO_THE_LAST)
    assert run_python(program).stderr == ""


STUBBORN = """
import signal
import sys
import time

from mpkit.compat import futures
from mpkit.errors import ClosedError


def work():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("deaf", flush=True)
    time.sleep(3600)


if __name__ == "__main__":
    executor = futures.ProcessPoolExecutor(1)
    executor.submit(work)
    # The test sends a line as soon as the worker, which prints to the same pipe, ignores SIGTERM.
    sys.stdin.readline()
    executor.terminate_workers()
"""


def test_a_worker_that_ignores_being_terminated_does_not_keep_the_program_from_ending(tmp_path: Any) -> None:
    program = tmp_path / "program.py"
    program.write_text(STUBBORN)
    with python(program, stdin=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "deaf\n"
        _, errors = process.communicate("go on\n", timeout=PATIENCE)
    assert (process.returncode, errors) == (0, "")


# -- executors -----------------------------------------------------------------------------------------------


def _all_of(queue: compat.SimpleQueue[str]) -> list[str]:
    found = []
    while not queue.empty():
        found.append(queue.get())
    queue.close()
    return found


def test_a_map_whose_time_is_over_lets_a_running_task_finish_and_cancels_the_rest() -> None:
    spawn = compat.get_context("spawn")
    told: compat.SimpleQueue[str] = compat.SimpleQueue()
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with futures.ProcessPoolExecutor(1, spawn, tasks.keep, (told, gate)) as executor:
        results = executor.map(tasks.tell_and_wait, range(100), timeout=0.05, chunksize=2)
        assert told.get() == "begun 0"
        with pytest.raises(futures.TimeoutError):
            next(results)
        gate.put(None)
        gate.put(None)
    gate.close()
    # A chunk is one task, so the rest of the running chunk is done, too.
    assert _all_of(told) == ["ended 0", "begun 1", "ended 1"]


def test_a_map_that_is_abandoned_lets_a_running_task_finish_and_cancels_the_rest() -> None:
    spawn = compat.get_context("spawn")
    told: compat.SimpleQueue[str] = compat.SimpleQueue()
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    gate.put(None)
    with futures.ProcessPoolExecutor(1, spawn, tasks.keep, (told, gate)) as executor:
        results = cast("Any", executor.map(tasks.tell_and_wait, range(100)))
        assert next(results) == 0
        assert [told.get() for _ in range(3)] == ["begun 0", "ended 0", "begun 1"]
        results.close()
        gate.put(None)
    gate.close()
    assert _all_of(told) == ["ended 1"]


def test_a_negative_timeout_of_a_future_counts_as_zero() -> None:
    spawn = compat.get_context("spawn")
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with futures.ProcessPoolExecutor(1, spawn, tasks.keep, (gate,)) as executor:
        future = executor.submit(tasks.wait_at_gate, 1)
        with pytest.raises(futures.TimeoutError):
            future.result(timeout=-1)
        with pytest.raises(futures.TimeoutError):
            future.exception(timeout=-0.5)
        gate.put(None)
        assert future.result(PATIENCE) == 1
        assert future.result(-1) == 1
        assert future.exception(-1) is None
    gate.close()


def test_an_executor_raises_what_pickle_has_raised() -> None:
    class Local:
        pass

    with pytest.raises(Exception) as caught:
        pickle.dumps(Local())

    async def result() -> object:
        return await asyncio.wrap_future(executor.submit(tasks.unpicklable))

    with futures.ProcessPoolExecutor(1) as executor:
        # The result is a lock, for which pickle raises TypeError on every version of Python.
        future = executor.submit(tasks.unpicklable)
        with pytest.raises(TypeError, match="lock"):
            future.result()
        assert type(future.exception()) is TypeError
        with pytest.raises(TypeError, match="lock"):
            list(executor.map(tasks.unpicklable, [1]))
        with pytest.raises(TypeError, match="lock"):
            asyncio.run(result())
        # For a local class, pickle raises different types on different versions of Python.
        sent = executor.submit(tasks.square, cast("Any", Local()))
        assert type(sent.exception()) is caught.type


MADE_FIRST = """
import sys

from mpkit import compat
from mpkit.compat import futures

compat.set_start_method(sys.argv[1], force=True)
executor = futures.ProcessPoolExecutor(1)


def double(x):
    return 2 * x


if __name__ == "__main__":
    with executor:
        print(executor.submit(double, 21).result())
"""


def test_an_executor_can_be_made_before_the_functions_that_it_calls(tmp_path: Any, start_method: str) -> None:
    # So workers must not start when the executor is made. A forked worker would not know the functions that
    # are defined further down. Other workers import the program, make an executor of their own by that, and
    # would start workers when they are not allowed to yet.
    program = tmp_path / "program.py"
    program.write_text(MADE_FIRST)
    ended = run_python(program, start_method)
    assert (ended.stdout, ended.stderr) == ("42\n", "")


OWN_REDUCER = """
import io
import multiprocessing
import sys
from multiprocessing.reduction import AbstractReducer, DupFd, ForkingPickler


class Pickler(ForkingPickler):
    @classmethod
    def dumps(cls, obj, protocol=4):
        buffer = io.BytesIO()
        cls(buffer, protocol).dump(obj)
        return buffer.getbuffer()


class Reducer(AbstractReducer):
    ForkingPickler = Pickler
    DupFd = staticmethod(DupFd)

    @staticmethod
    def dump(obj, file, protocol=4):
        Pickler(file, protocol).dump(obj)


multiprocessing.get_context(sys.argv[1]).reducer = Reducer()

# Only now: it has to find out the start methods nevertheless.
from mpkit import compat
from mpkit.compat import futures

if __name__ == "__main__":
    context = compat.get_context(sys.argv[1])
    with context.Pool(1) as pool, futures.ProcessPoolExecutor(1, context) as executor:
        print(pool.apply(abs, (-1,)), executor.submit(abs, -2).result())
    process = context.Process(target=print, args=(3,))
    process.start()
    process.join()
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_program_may_set_the_reducer_of_a_context(tmp_path: Any, method: str) -> None:
    """A usual recipe for another protocol of pickle. (forkserver fails in the standard library, too.)"""
    program = tmp_path / "program.py"
    program.write_text(OWN_REDUCER)
    ended = run_python("-W", "ignore", program, method)
    assert (ended.stdout, ended.stderr) == ("1 2\n3\n", "")


def test_an_executor_belongs_to_the_process_that_submits_its_first_task() -> None:
    # As in a server that makes the executor when it loads the application, and forks after that.
    executor = futures.ProcessPoolExecutor(1, compat.get_context("spawn"))

    def submit() -> None:
        with executor:
            assert executor.submit(tasks.square, 3).result(PATIENCE) == 9

    assert forked(submit) == 0
    assert executor.submit(tasks.square, 4).result(PATIENCE) == 16
    executor.shutdown()


@pytest.mark.parametrize("end", ["shutdown", "terminate_workers", "kill_workers"])
def test_an_executor_that_never_had_a_task_ends_without_workers(end: str) -> None:
    executor = futures.ProcessPoolExecutor(1)
    getattr(executor, end)()
    with pytest.raises(RuntimeError):
        executor.submit(tasks.square, 1)
    assert executor._pool is None


def test_a_worker_that_has_ended_can_still_be_terminated_and_joined(start_method: str) -> None:
    # Programs terminate all that `active_children` returns, and a worker may have ended in the meantime.
    executor = futures.ProcessPoolExecutor(1, compat.get_context(start_method))
    assert executor.submit(tasks.square, 3).result(PATIENCE) == 9
    (worker,) = executor._processes.values()
    assert worker in compat.active_children()
    executor.shutdown()
    worker.terminate()
    worker.kill()
    worker.join()
    assert not worker.is_alive()
    assert worker.exitcode == 0
    worker.close()


def test_a_context_given_by_its_name_is_refused() -> None:
    with pytest.raises(AttributeError):
        futures.ProcessPoolExecutor(1, cast("Any", "spawn"))


def test_workers_that_are_forked_cannot_be_replaced() -> None:
    if "fork" not in compat.get_all_start_methods():
        pytest.skip("there is no fork here")
    with pytest.raises(ValueError, match="incompatible with the 'fork'"):
        futures.ProcessPoolExecutor(1, compat.get_context("fork"), max_tasks_per_child=1)


def test_true_is_one_worker() -> None:
    with futures.ProcessPoolExecutor(True, max_tasks_per_child=True) as executor:
        assert executor.submit(tasks.square, 2).result() == 4
    with pytest.raises(ValueError, match="0"):
        futures.ProcessPoolExecutor(False)


# -- the names of workers ------------------------------------------------------------------------------------


_NAMES = {"fork": "Fork", "spawn": "Spawn", "forkserver": "ForkServer"}


def test_workers_have_the_names_that_they_have_in_the_standard_library(start_method: str) -> None:
    context = compat.get_context(start_method)
    std = multiprocessing.get_context(start_method)
    with context.Pool(1) as ours, std.Pool(1) as theirs:
        names = [pool.apply(tasks.name_of_this_process) for pool in (ours, theirs)]
        assert [name.rpartition("-")[0] for name in names] == [f"{_NAMES[start_method]}PoolWorker"] * 2
        numbers = {int(name.rpartition("-")[2]) for name in names}
        assert len(numbers) == 2, "workers are not numbered together with all other children"
        assert [process.name for process in ours._pool] == names[:1]
    with futures.ProcessPoolExecutor(1, mp_context=context) as executor:
        name = executor.submit(tasks.name_of_this_process).result()
    assert name.rpartition("-")[0] == f"{_NAMES[start_method]}Process"


# -- queues --------------------------------------------------------------------------------------------------


def test_a_queue_can_be_extended_as_the_standard_library_s_can(start_method: str) -> None:
    # There, the constructor requires a context, and subclasses extend `__getstate__` and `__setstate__`.
    queue = tasks.CountingQueue(start_method)
    process = compat.get_context(start_method).Process(target=tasks.put_two, args=(queue,))
    process.start()
    assert [queue.get(timeout=PATIENCE) for _ in range(2)] == [1, 2]
    process.join()
    assert queue.puts.value == 2
    queue.close()


def test_the_type_arguments_of_a_queue_need_not_be_picklable() -> None:
    class Local: ...

    for queue in (compat.Queue[Local](), compat.JoinableQueue[Local](), compat.SimpleQueue[Local]()):
        again: Any = pickle.loads(pickle.dumps(queue))
        again.put(1)
        assert cast("Any", queue).get() == 1
        queue.close()


def test_a_lock_and_the_other_queues_take_a_context_too() -> None:
    context = compat.get_context()
    for made in (
        compat.synchronize.Lock(ctx=context),
        compat.queues.SimpleQueue[int](ctx=context),
        compat.queues.JoinableQueue[int](ctx=context),
    ):
        # Programs set attributes of their own on these objects.
        setattr(made, "purpose", "logs")  # noqa: B010
        assert "purpose" in vars(made)
        made.close()


def test_a_closed_queue_raises_what_programs_catch() -> None:
    # The standard library raises OSError here, because its pipe is closed.
    simple: compat.SimpleQueue[int] = compat.SimpleQueue()
    simple.close()
    for use in (simple.get, simple.empty, lambda: simple.put(1)):
        with pytest.raises(OSError, match="is closed"):
            use()
    queues: list[compat.Queue[int]] = [compat.Queue(), compat.JoinableQueue()]
    for queue in queues:
        with pytest.raises(AssertionError, match="is not closed"):
            queue.join_thread()
        queue.put(1)
        queue.close()
        queue.join_thread()
        with pytest.raises(OSError, match="is closed"):
            queue.empty()
        with pytest.raises(ValueError, match="is closed"):
            queue.put(1)
        with pytest.raises(ValueError, match="is closed"):
            queue.get()


# -- callbacks of a pool -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ask", ["get", "wait", "ready", "successful"])
def test_a_result_is_ready_only_after_its_callback_has_returned(ask: str) -> None:
    called: list[object] = []

    def slow(result: object) -> None:
        time.sleep(0.01)
        called.append(result)

    with compat.Pool(1) as pool:
        for submit in (
            lambda: pool.apply_async(tasks.square, (3,), callback=slow),
            lambda: pool.map_async(tasks.square, [3], callback=slow),
            lambda: pool.starmap_async(tasks.square, [(3,)], callback=slow, error_callback=slow),
            lambda: pool.apply_async(tasks.fail, (3,), error_callback=slow),
            lambda: pool.apply_async(tasks.square, (cast("Any", lambda: 3),), error_callback=slow),
        ):
            called.clear()
            result: Any = submit()
            if ask == "get":
                with contextlib.suppress(Exception):
                    result.get(PATIENCE)
            elif ask == "wait":
                result.wait()
            elif ask == "ready":
                wait_until(result.ready, "the result is ready")
            else:
                wait_until(lambda r=result: _is_told(r), "the result can be told")  # type: ignore[misc]
            assert len(called) == 1


def _is_told(result: Any) -> bool:
    try:
        result.successful()
    except ValueError:
        return False
    return True


def test_a_result_is_not_ready_while_its_callback_runs() -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(_result: object) -> None:
        begun.set()
        go_on.wait()

    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with compat.Pool(1, tasks.keep, (gate,)) as pool:
        result = pool.apply_async(tasks.wait_at_gate, (9,), callback=slow)
        # Only now: if the result were there at once, `apply_async` itself would call the callback.
        gate.put(None)
        assert begun.wait(PATIENCE)
        assert not result.ready()
        with pytest.raises(compat.TimeoutError):
            result.get(0.01)
        with pytest.raises(compat.TimeoutError):
            result.get(-1)
        with pytest.raises(ValueError, match="not ready"):
            result.successful()
        go_on.set()
        assert result.get(PATIENCE) == 9
    gate.close()


def test_a_result_is_ready_when_only_the_other_callback_was_given() -> None:
    with compat.Pool(1) as pool:
        assert pool.apply_async(tasks.square, (3,), error_callback=print).get(PATIENCE) == 9
        with pytest.raises(KeyError):
            pool.apply_async(tasks.fail, (3,), callback=print).get(PATIENCE)


def test_a_callback_that_asks_for_results_does_not_wait_for_callbacks() -> None:
    # One thread calls all callbacks. If `get` waited for callbacks there, this thread would wait for itself.
    seen: list[object] = []
    results: list[Any] = []
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()

    def ask(result: object) -> None:
        seen.append(result)
        seen.extend(each.get(PATIENCE) for each in results)

    with compat.Pool(1, tasks.keep, (gate,)) as pool:
        results += [
            pool.apply_async(tasks.wait_at_gate, (3,), callback=ask),
            pool.apply_async(tasks.wait_at_gate, (4,), callback=lambda _result: None),
        ]
        gate.put(None)
        gate.put(None)
        assert [each.get(PATIENCE) for each in results] == [3, 4]
    assert seen == [3, 3, 4]
    gate.close()


@pytest.mark.skipif(os.name != "posix", reason="fork")
def test_a_fork_does_not_wait_for_a_callback_that_its_parent_calls() -> None:
    """The fork has no thread that would call it, so a `get()` that waits for it would never return."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(_result: object) -> None:
        begun.set()
        assert go_on.wait(PATIENCE)

    with compat.Pool(1) as pool:
        result = pool.apply_async(tasks.square, (3,), callback=hold)
        assert begun.wait(PATIENCE)

        def ask() -> None:
            assert result.get(PATIENCE / 2) == 9

        try:
            assert forked(ask) == 0
        finally:
            go_on.set()


def test_a_callback_that_raises_does_not_hold_up_its_result() -> None:
    def broken(_result: object) -> None:
        raise LookupError

    with compat.Pool(1) as pool:
        assert pool.apply_async(tasks.square, (3,), callback=broken).get(PATIENCE) == 9
        sent = pool.apply_async(tasks.square, (cast("Any", lambda: 3),), error_callback=broken)
        sent.wait(PATIENCE)
        assert sent.ready()


@pytest.mark.parametrize("sent", [True, False])
def test_callbacks_are_called_in_a_thread_of_the_pool(monkeypatch: pytest.MonkeyPatch, sent: bool) -> None:
    """If the submitting thread called it, it would deadlock when it takes a lock that this thread holds."""
    threads: list[int] = []
    submit = TaskPool.submit

    def submit_and_wait(pool: TaskPool, *args: Any, **kwargs: Any) -> TaskHandle[Any]:
        handle = submit(pool, *args, **kwargs)
        handle.wait(PATIENCE)
        return handle

    def note(_outcome: object) -> None:
        threads.append(threading.get_ident())

    monkeypatch.setattr(TaskPool, "submit", submit_and_wait)
    with compat.Pool(1) as pool:
        argument: Any = 3 if sent else lambda: 3
        result = pool.apply_async(tasks.square, (argument,), callback=note, error_callback=note)
        result.wait(PATIENCE)
    assert threads
    assert threading.get_ident() not in threads


@pytest.mark.parametrize("verb", ["map_async", "starmap_async"])
def test_no_callback_is_called_for_an_empty_map(verb: str) -> None:
    called: list[object] = []
    with compat.Pool(1) as pool:
        for empty in (list[Any](), iter(list[Any]())):
            result = getattr(pool, verb)(tasks.square, empty, None, called.append, called.append)
            assert result.get(PATIENCE) == []
        # Callbacks are called in order: those of the maps would have been called before this one.
        pool.apply_async(tasks.square, (2,), callback=called.append).wait()
    assert called == [4]


@pytest.mark.parametrize("which", ["callback", "error_callback"])
def test_a_callback_that_cannot_be_called_is_refused(which: str) -> None:
    with compat.Pool(1) as pool, pytest.raises(TypeError, match="callback must be callable"):
        pool.apply_async(tasks.square, (1,), **cast("Any", {which: 3}))


# -- waiting for a result of a pool --------------------------------------------------------------------------


@pytest.fixture
def waiting() -> Iterator[tuple[compat.Pool, Any]]:
    """A pool, and a result that does not arrive before the test has ended."""
    gate: compat.SimpleQueue[None] = compat.SimpleQueue()
    with compat.Pool(1, tasks.keep, (gate,)) as pool:
        result = pool.apply_async(tasks.wait_at_gate, (3,))
        yield pool, result
        gate.put(None)
        assert result.get(PATIENCE) == 3
    gate.close()


@pytest.mark.parametrize("ask", ["get", "wait"])
def test_waiting_in_a_signal_handler_is_refused(waiting: tuple[compat.Pool, Any], ask: str) -> None:
    pool, result = waiting
    with pytest.raises(RuntimeError, match="would wait for itself"):
        # Called while this thread holds the pool's own lock, as a signal handler may be.
        pool._task_pool._engine.dispatcher.lock.run(getattr(result, ask))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("ask", ["get", "wait", "next"])
def test_waiting_in_a_fork_is_refused(waiting: tuple[compat.Pool, Any], ask: str) -> None:
    pool, result = waiting
    results = pool.imap(tasks.square, [2])
    # As if another thread held it at the time of the fork, which does not exist in the fork.
    results._results._turn.acquire()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            with pytest.raises(ClosedError, match="fork"):
                (results.next if ask == "next" else getattr(result, ask))()
            code = 0
        finally:
            os._exit(code)
    results._results._turn.release()
    _, status = os.waitpid(pid, 0)
    assert status == 0


class _Telling:
    """Counts how often instances are unpickled."""

    unpickled = 0

    def __setstate__(self, _state: object) -> None:
        type(self).unpickled += 1


def make_telling() -> _Telling:
    made = _Telling()
    # Without any state, pickle would not call `__setstate__`.
    made.__dict__["one"] = 1
    return made


def test_waiting_unpickles_nothing() -> None:
    before = _Telling.unpickled
    with compat.Pool(1) as pool:
        result = pool.apply_async(make_telling)
        result.wait(PATIENCE)
        assert result.ready()
        assert _Telling.unpickled == before
        result.get()
        assert _Telling.unpickled == before + 1


# -- pools without a reference -------------------------------------------------------------------------------


def _dropped(start: Any) -> Any:
    """Return what `start` returns for a new pool, to which there is then no other reference."""
    result = start(compat.Pool(1))
    gc.collect()
    return result


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_result_keeps_its_pool_until_it_is_ready() -> None:
    assert _dropped(lambda pool: pool.apply_async(tasks.nap, (3,))).get(PATIENCE) == 3
    assert _dropped(lambda pool: pool.map_async(tasks.nap, [3, 4])).get(PATIENCE) == [3, 4]
    assert list(_dropped(lambda pool: pool.imap(tasks.nap, iter([3, 4, 5])))) == [3, 4, 5]
    assert sorted(_dropped(lambda pool: pool.imap_unordered(tasks.nap, [3, 4]))) == [3, 4]
    # But no longer than that.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        result = _dropped(lambda pool: pool.apply_async(tasks.nap, (3,)))
        assert not caught
        assert result.get(PATIENCE) == 3
        gc.collect()
        assert [each.category for each in caught] == [ResourceWarning]


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
def test_a_callback_keeps_its_pool_until_it_is_called() -> None:
    called: compat.SimpleQueue[int] = compat.SimpleQueue()
    compat.Pool(1).apply_async(tasks.nap, (3,), callback=called.put)
    gc.collect()
    assert called.get() == 3
    called.close()


# -- errors of a pool ----------------------------------------------------------------------------------------


def test_an_error_about_a_result_tells_what_it_was() -> None:
    with compat.Pool(1) as pool:
        asks: list[Callable[[], object]] = [
            lambda: pool.apply(tasks.unpicklable),
            lambda: pool.map(tasks.unpicklable, [1, 2]),
            lambda: next(pool.imap(tasks.unpicklable, [1])),
        ]
        for ask in asks:
            with pytest.raises(compat.pool.MaybeEncodingError) as caught:
                ask()
            error = cast("Any", caught.value)
            assert error.value == "<an object of type _thread.lock>"
            assert error.exc.startswith("TypeError(")


def test_an_error_about_an_exception_tells_what_it_was() -> None:
    with compat.Pool(1) as pool:
        with pytest.raises(compat.pool.MaybeEncodingError) as caught:
            pool.apply(tasks.raise_a_local_error)
        error = cast("Any", caught.value)
        assert error.value == f"<{tasks.__name__}.raise_a_local_error.<locals>.LocalError>"
        assert "LocalError" in error.exc
        assert repr(pool).startswith("<Pool over <TaskPool ")


@pytest.mark.parametrize("kind", [compat.Pool, futures.ProcessPoolExecutor])
def test_an_error_of_the_task_is_not_taken_for_one_about_its_result(kind: Callable[[int], Any]) -> None:
    with kind(1) as pool:
        with pytest.raises(SerializationError, match=r"^cannot pickle .*lambda") as caught:
            _call(pool, tasks.put_unpicklable, compat.Queue())
        assert "put_unpicklable" in str(caught.value.__cause__)


def test_arguments_that_cannot_be_unpickled_are_not_taken_for_a_result() -> None:
    asks: list[Callable[[compat.Pool], object]] = [
        lambda pool: pool.apply(tasks.name_of_this_process, (tasks.BrokenInWorkers(),)),
        lambda pool: pool.map(tasks.name_of_this_process, [tasks.BrokenInWorkers()]),
        lambda pool: next(pool.imap(tasks.name_of_this_process, [tasks.BrokenInWorkers()])),
    ]
    with compat.Pool(1) as pool:
        for ask in asks:
            with pytest.raises(SerializationError, match=r"^cannot unpickle .*at unpickle"):
                ask(pool)
    with futures.ProcessPoolExecutor(1) as executor, pytest.raises(LookupError, match="at unpickle"):
        executor.submit(tasks.name_of_this_process, tasks.BrokenInWorkers()).result()


def _call(pool: Any, function: Callable[..., object], argument: object) -> object:
    if isinstance(pool, compat.Pool):
        return pool.apply(function, (argument,))
    return pool.submit(function, argument).result()


def test_imap_raises_what_pickle_has_raised() -> None:
    local = cast("Any", lambda x: x)
    with pytest.raises(Exception) as of_local:
        pickle.dumps(local)
    with compat.Pool(1) as pool:
        for start in (lambda: pool.imap(local, [1]), lambda: pool.imap_unordered(tasks.square, [local])):
            with pytest.raises(of_local.type) as caught:
                next(start())
            assert caught.type is of_local.type


@pytest.mark.parametrize("verb", ["imap", "imap_unordered"])
@pytest.mark.parametrize("end", ["close", "terminate"])
def test_a_pool_that_has_ended_takes_no_empty_input_either(verb: str, end: str) -> None:
    pool = compat.Pool(1)
    getattr(pool, end)()
    with pytest.raises(ValueError):
        getattr(pool, verb)(tasks.square, [])
    pool.join()


def test_a_stop_iteration_of_a_task_ends_no_loop_and_shortens_no_list() -> None:
    def cause(call: Callable[[], object]) -> object:
        with pytest.raises(RuntimeError, match="StopIteration") as caught:
            call()
        return caught.value.__cause__

    with compat.Pool(1) as pool, futures.ProcessPoolExecutor(1) as executor:
        assert isinstance(cause(lambda: pool.apply(next, (iter(()),))), StopIteration)
        assert isinstance(cause(lambda: next(pool.imap(next, [iter(())]))), StopIteration)
        assert isinstance(cause(executor.submit(next, iter(())).result), StopIteration)
        # Within a chunk, Python mistakes it for the end of an iterator, so the cause is another error.
        assert cause(lambda: pool.map(next, [iter("a"), iter(()), iter("b")], chunksize=3))


@pytest.mark.parametrize(
    "call",
    [
        lambda pool: pool.apply_async(abs, 1),
        lambda pool: pool.starmap_async(abs, [(1,), 2]),
        lambda pool: pool.imap(abs, 1),
    ],
    ids=["args", "an item", "the input"],
)
def test_an_argument_that_is_not_iterable_is_refused_by_the_call(call: Callable[[Any], object]) -> None:
    with compat.Pool(1) as pool:
        with pytest.raises(TypeError, match="iterable"):
            call(pool)
        assert pool.map(abs, [-1]) == [1]


@pytest.mark.parametrize("kind", [compat.Queue, compat.SimpleQueue])
def test_an_item_that_cannot_be_unpickled_tells_why(kind: Callable[[], Any]) -> None:
    queue = kind()
    queue.put(tasks.Unfit())
    queue.put(1)
    with pytest.raises(SerializationError) as caught:
        queue.get()
    assert isinstance(caught.value.__cause__, ValueError)
    assert queue.get() == 1
    queue.close()


def test_a_pool_cannot_be_pickled() -> None:
    with compat.Pool(1) as pool, pytest.raises(NotImplementedError, match="cannot be passed"):
        pickle.dumps(pool)


def test_true_is_one_process() -> None:
    with compat.Pool(True, maxtasksperchild=True) as pool:
        assert pool.map(tasks.square, [1, 2]) == [1, 4]
    with pytest.raises(ValueError):
        compat.Pool(False)


def test_a_wrong_number_of_tasks_is_a_wrong_value() -> None:
    with pytest.raises(ValueError, match="maxtasksperchild"):
        compat.Pool(1, maxtasksperchild=cast("Any", 1.5))


def test_a_negative_timeout_of_join_counts_as_zero() -> None:
    process = compat.Process(target=time.sleep, args=(60,))
    process.start()
    process.join(-1)
    assert process.is_alive()
    with pytest.raises(TypeError):
        process.join(cast("Any", "1"))
    process.kill()
    process.join()


def test_a_process_may_have_a_number_for_a_name() -> None:
    assert compat.Process(name=cast("Any", 3)).name == "3"


@pytest.mark.parametrize("kind", [AssertionError, ValueError])
def test_misuse_of_a_process_is_an_assertion_error_too(kind: type[Exception]) -> None:
    with pytest.raises(kind, match="group must be None"):
        compat.Process(cast("Any", 1))
    process = compat.Process(target=time.sleep, args=(0,))
    for ask in (process.join, process.result):
        with pytest.raises(kind, match="has not been started"):
            ask()
    process.start()
    process.join()
    process.close()
    # After close(), the standard library raises a ValueError, too.
    with pytest.raises(ClosedError):
        process.join()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.parametrize("kind", [AssertionError, RuntimeError])
def test_a_process_of_another_process_cannot_be_joined(kind: type[Exception]) -> None:
    process = compat.Process(target=time.sleep, args=(0,))
    process.start()

    def ask_in_vain() -> None:
        for ask in (process.join, process.result):
            with pytest.raises(kind, match="only the process that created it"):
                ask()

    assert forked(ask_in_vain) == 0
    process.join()


def test_the_submodules_of_futures_are_there() -> None:
    assert issubclass(futures.process.BrokenProcessPool, futures.BrokenExecutor)
    with pytest.raises(AttributeError):
        futures.nothing  # noqa: B018  asking is what is tested


class _Result:
    """A result to which there can be weak references."""


def make_result(_number: int) -> _Result:
    return _Result()


@pytest.mark.parametrize("chunksize", [1, 3])
def test_a_result_that_the_caller_drops_is_gone(chunksize: int) -> None:
    with futures.ProcessPoolExecutor(1) as executor:
        for result in executor.map(make_result, range(6), chunksize=chunksize):
            seen = weakref.ref(result)
            del result
            gc.collect()
            assert seen() is None


# -- logging -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [compat.Pool, futures.ProcessPoolExecutor])
def test_a_worker_logs_where_its_initializer_says(
    tmp_path: Any, caplog: pytest.LogCaptureFixture, kind: Any
) -> None:
    caplog.set_level(logging.INFO)
    path = str(tmp_path / "log")
    # Spawned workers do not inherit the log handlers of pytest.
    context = compat.get_context("spawn")
    how = {"context": context} if kind is compat.Pool else {"mp_context": context}
    with kind(1, initializer=tasks.log_into, initargs=(path,), **how) as pool:
        assert list(pool.map(tasks.log, range(2))) == [None, None]
    assert (tmp_path / "log").read_text() == "item 0\nitem 1\n"
    assert caplog.messages == []
