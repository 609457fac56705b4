"""Faults that have once hung the pool, or lost or leaked something.

Each test is the smallest program that shows the fault.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import functools
import gc
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit import LockedCounter
from mpkit.errors import ClosedError, SerializationError, TaskCancelled, TaskTimeout
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine import collector as _collector
from mpkit.pool._engine import lead as _lead
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine import seen_shared as _seen_shared
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.ledger import Task
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import FRONT, LONGEST_TASK
from mpkit.pool._protocol.payload import INLINE_BYTES
from mpkit.pool._worker import worker as _worker
from tests.contract import pool_tasks as tasks
from tests.helpers.collecting import collector_held
from tests.helpers.processes import forked
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    with TaskPool(2, context="fork") as pool:
        yield pool


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The types of the exceptions that are reported to `threading.excepthook`."""
    kinds: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: kinds.append(args.exc_type.__name__))
    return kinds


# -- maxtasksperchild ----------------------------------------------------------------------------------------


def wait_or_echo(path: str) -> str:
    """One function for all tasks: only if it is known to be short, more of them are sent ahead."""
    return tasks.wait_for_file(path) if path else path


@pytest.mark.parametrize("ending", ["first", "last", "time limit"])
def test_tasks_that_were_taken_back_do_not_count_for_maxtasksperchild(tmp_path: Path, ending: str) -> None:
    """If they counted, the worker would wait for more tasks, and the pool would send it none."""
    gate = tmp_path / "gate"
    with TaskPool(1, maxtasksperchild=30, context="fork") as pool:
        for _ in range(20):
            pool.apply(wait_or_echo, ("",))
        first_pool = pool.with_options(timeout=0.2) if ending == "time limit" else pool
        first = first_pool.submit(wait_or_echo, str(gate))
        # On a very busy machine, its time limit may have passed before it is seen running.
        wait_until(lambda: first.running() or first.done(), "the first one runs")
        others = [pool.submit(wait_or_echo, "") for _ in range(9)]
        if ending == "first":
            assert first.cancel()
        elif ending == "last":
            assert others.pop().cancel()
            gate.touch()
        else:
            with pytest.raises(TaskTimeout):
                first.result(PATIENCE)
        assert [task.result(PATIENCE) for task in others] == [""] * len(others)
        assert pool.submit(wait_or_echo, "").result(PATIENCE) == ""
        # And the worker ends when it should.
        for _ in range(30):
            pool.apply(wait_or_echo, ("",))
        assert pool.statistics().workers_started >= 2


# -- exceptions that must not end the collector's thread -----------------------------------------------------


class _Raising(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise KeyError(record.name)


def log_something(name: str, what: object) -> None:
    logging.getLogger(name).warning("hello", extra={"what": what})


@pytest.mark.parametrize("way", ["handler", "filter"])
def test_an_error_in_handling_a_log_record_is_reported_and_the_pool_goes_on(
    pool: TaskPool, reported: list[str], way: str
) -> None:
    logger = logging.getLogger("mpkit-test-regressions")
    handler = _Raising()

    def refuse(_record: logging.LogRecord) -> bool:
        raise KeyError("filter")

    with contextlib.ExitStack() as stack:
        if way == "handler":
            logger.addHandler(handler)
            stack.callback(logger.removeHandler, handler)
        else:
            logger.addFilter(refuse)
            stack.callback(logger.removeFilter, refuse)
        pool.apply(log_something, (logger.name, 1))
        wait_until(lambda: reported, "it is reported")
    assert reported == ["KeyError"]
    called = threading.Event()
    pool.apply_async(tasks.square, (2,), callback=lambda _result: called.set())
    assert called.wait(PATIENCE)


@pytest.mark.parametrize("way", ["callback", "done callback"])
def test_a_callback_that_raises_system_exit_ends_no_thread(
    pool: TaskPool, reported: list[str], way: str, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    def leave(_outcome: object) -> None:
        sys.exit(3)

    gate = tmp_path / "gate"
    if way == "callback":
        pool.apply_async(tasks.wait_for_file, (str(gate),), callback=leave)
    else:
        pool.submit(tasks.wait_for_file, str(gate)).add_done_callback(leave)
    gate.touch()
    wait_until(lambda: reported == ["SystemExit"] or "SystemExit" in caplog.text, "it is reported")
    called = threading.Event()
    pool.apply_async(tasks.square, (2,), callback=lambda _result: called.set())
    assert called.wait(PATIENCE)


def test_an_error_of_the_collector_itself_is_reported_and_it_goes_on_afterwards(
    pool: TaskPool, reported: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = pool._engine.collector
    pool.apply(tasks.square, (1,))

    def fail() -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(collector, "_do_chores", fail)
        collector.wake()
        wait_until(lambda: reported, "it is reported")
    called = threading.Event()
    pool.apply_async(tasks.square, (2,), callback=lambda _result: called.set())
    assert called.wait(PATIENCE)


# -- signal handlers and destructors, in the middle of the pool's own work -----------------------------------


def in_the_middle(pool: TaskPool, act: Callable[[], object]) -> object:
    """Call `act` while this thread has the pool's lock, as a signal handler may. Return result or error."""
    try:
        return pool._engine.dispatcher.lock.run(act)
    except Exception as error:
        return error


def test_looking_at_the_pool_in_a_signal_handler(pool: TaskPool, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    waiting = pool.submit(tasks.wait_for_file, str(gate))

    def look() -> object:
        pool.workers()
        return waiting.done(), pool.statistics().submitted

    assert in_the_middle(pool, look) == (False, 1)
    gate.touch()
    waiting.result(PATIENCE)


def test_submitting_in_a_signal_handler(pool: TaskPool) -> None:
    submit = functools.partial(pool.submit, tasks.square, 4)
    handle = in_the_middle(pool, submit)
    assert isinstance(handle, concurrent.futures.Future)
    assert handle.result(PATIENCE) == 16


def test_cancelling_in_a_signal_handler(pool: TaskPool, tmp_path: Path) -> None:
    waiting = pool.submit(tasks.wait_for_file, str(tmp_path / "never"))
    wait_until(waiting.running, "it runs")
    in_the_middle(pool, waiting.cancel)
    with pytest.raises(TaskCancelled):
        waiting.result(PATIENCE)


def test_waiting_in_a_signal_handler_is_refused(pool: TaskPool) -> None:
    error = in_the_middle(pool, lambda: pool.apply(tasks.square, (4,)))
    assert isinstance(error, RuntimeError)
    assert "signal handler" in str(error)


def test_ending_the_pool_in_a_signal_handler(pool: TaskPool) -> None:
    def end() -> object:
        pool.terminate()
        with pytest.raises(RuntimeError, match="signal handler"):
            pool.join()
        return "ended"

    assert in_the_middle(pool, end) == "ended"
    assert pool.join(PATIENCE)


def test_submitting_and_ending_the_pool_in_a_signal_handler(pool: TaskPool) -> None:
    def submit_and_end() -> object:
        handle = pool.submit(tasks.square, 4)
        pool.terminate()
        return handle

    handle = in_the_middle(pool, submit_and_end)
    assert isinstance(handle, concurrent.futures.Future)
    with contextlib.suppress(TaskCancelled):
        assert handle.result(PATIENCE) == 16


# -- callbacks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["apply_async", "map_async", "starmap_async"])
def test_the_callback_of_a_task_that_has_ended_already_is_called_in_the_pools_thread(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    """If the submitting thread called it, the callback would wait for ever for the lock of that thread."""

    def submit_and_wait(submit: Callable[..., TaskHandle[Any]]) -> Callable[..., TaskHandle[Any]]:
        def call(*args: Any, **kwargs: Any) -> TaskHandle[Any]:
            handle = submit(*args, **kwargs)
            handle.wait(PATIENCE)
            return handle

        return call

    monkeypatch.setattr(pool, "submit", submit_and_wait(pool.submit))
    monkeypatch.setattr(pool, "_map", submit_and_wait(pool._map))
    lock = threading.Lock()
    called: queue.SimpleQueue[int] = queue.SimpleQueue()

    def take_the_lock(_outcome: object) -> None:
        assert lock.acquire(timeout=PATIENCE)
        lock.release()
        called.put(threading.get_ident())

    calls: dict[str, Callable[..., object]] = {
        "apply_async": lambda: pool.apply_async(tasks.square, (3,), None, take_the_lock),
        "map_async": lambda: pool.map_async(tasks.square, [3], None, take_the_lock),
        "starmap_async": lambda: pool.starmap_async(tasks.square, [(3,)], None, take_the_lock),
    }
    with lock:
        calls[verb]()
    assert called.get(timeout=PATIENCE) != threading.get_ident()


# -- max_pending ---------------------------------------------------------------------------------------------


def test_submit_in_a_callback_does_not_wait_for_room() -> None:
    """Otherwise all other callbacks would wait with it."""
    left = 20
    done = threading.Event()
    with TaskPool(1, max_pending=1, context="fork") as pool:

        def again(_result: object) -> None:
            nonlocal left
            left -= 1
            if left > 0:
                pool.apply_async(tasks.square, (left,), callback=again)
                pool.apply_async(tasks.square, (left,), callback=again)
            elif not left:
                done.set()

        pool.apply_async(tasks.square, (1,), callback=again)
        assert done.wait(PATIENCE)


def test_submit_to_an_executor_in_a_callback_does_not_wait_for_room() -> None:
    submitted: list[concurrent.futures.Future[int]] = []
    with TaskPool(1, max_pending=1, context="fork") as pool:
        executor = pool.executor

        def again(_future: object) -> None:
            submitted.append(executor.submit(tasks.square, 7))

        for number in range(20):
            executor.submit(tasks.square, number).add_done_callback(again)
        wait_until(lambda: len(submitted) == 20, "all callbacks were called")
        assert [future.result(PATIENCE) for future in submitted] == [49] * 20


def test_an_executor_takes_any_keyword(pool: TaskPool) -> None:
    assert pool.executor.submit(dict, self=1, function=2).result(PATIENCE) == {"self": 1, "function": 2}


# -- a fork of the pool's process ----------------------------------------------------------------------------


@pytest.mark.parametrize("act", ["done", "cancel", "result", "wait", "statistics"])
def test_a_forked_child_leaves_the_tasks_to_the_parent(pool: TaskPool, tmp_path: Path, act: str) -> None:
    gate = tmp_path / "gate"
    handles = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(4)]
    wait_until(handles[0].running, "it runs")

    def ask() -> None:
        if act == "done":
            assert not any(handle.done() for handle in handles)
            return
        with pytest.raises(ClosedError, match="fork"):
            if act == "cancel":
                handles[-1].cancel()
            elif act == "wait":
                concurrent.futures.wait(handles)
            elif act == "statistics":
                pool.statistics()
            else:
                handles[0].result(PATIENCE)

    assert forked(ask) == 0
    gate.touch()
    assert [handle.result(PATIENCE) for handle in handles] == [str(gate)] * 4


def test_a_forked_child_may_use_a_task_that_had_ended(pool: TaskPool) -> None:
    handle = pool.submit(tasks.square, 3)
    assert handle.result(PATIENCE) == 9

    def ask() -> None:
        assert handle.done()
        assert handle.result() == 9
        assert concurrent.futures.wait([handle]).done == {handle}
        called: list[object] = []
        handle.add_done_callback(called.append)
        assert called == [handle]

    assert forked(ask) == 0


def test_a_fork_in_the_middle_of_the_work_of_another_thread_does_not_hang(pool: TaskPool) -> None:
    """The lock that the other thread holds is held for ever in the child."""
    held, go_on = threading.Event(), threading.Event()

    def hold() -> None:
        with pool._engine.dispatcher.lock:
            held.set()
            go_on.wait(PATIENCE)

    def ask() -> None:
        signal.alarm(int(PATIENCE))
        with pytest.raises(ClosedError, match="fork"):
            pool.submit(tasks.square, 3)

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        assert held.wait(PATIENCE)
        assert forked(ask) == 0
    finally:
        go_on.set()
        thread.join(PATIENCE)


# -- the initializer -----------------------------------------------------------------------------------------


class Refuses:
    """Refuses to be pickled by a RuntimeError, as the locks of multiprocessing do."""

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        raise RuntimeError("not me")


def test_an_argument_of_the_initializer_that_cannot_be_pickled_is_named() -> None:
    with pytest.raises(SerializationError, match=r"argument 2 of the initializer .*: not me") as caught:
        TaskPool(1, tasks.nothing, (1, Refuses()), context="spawn")
    assert isinstance(caught.value.__cause__, RuntimeError)


def test_an_initializer_may_be_sent_by_value_and_get_an_event() -> None:
    event = multiprocessing.get_context("spawn").Event()
    with TaskPool(1, lambda seen: seen.set(), (event,), context="spawn", pickler="cloudpickle"):
        assert event.wait(PATIENCE)


# -- shared objects ------------------------------------------------------------------------------------------


def files_of_parcels() -> set[str]:
    return {name for name in os.listdir("/dev/shm") if f"parcel-{os.getpid()}-" in name}


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="Linux")
@pytest.mark.parametrize("way", ["pickled by hand", "a task that cannot be sent"])
def test_a_shared_object_is_removed_with_its_last_reference(pool: TaskPool, way: str) -> None:
    before = files_of_parcels()
    shared = pool.share(b"x" * 200_000)
    if way == "pickled by hand":
        for _ in range(200):
            pickle.dumps(shared)
    else:
        with pytest.raises(SerializationError):
            pool.submit(tasks.echo, (shared, lambda: None))
    del shared
    gc.collect()
    assert files_of_parcels() == before


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="Linux")
def test_a_shared_object_keeps_the_ones_inside_it_alive_for_its_tasks(pool: TaskPool, tmp_path: Path) -> None:
    before = files_of_parcels()
    gate = tmp_path / "gate"
    waiting = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(2)]
    with pool.share(b"x" * 200_000) as inner, pool.share([inner, 1]) as outer:
        handle = pool.submit(tasks.echo, outer)
    gate.touch()
    assert handle.result(PATIENCE) == [b"x" * 200_000, 1]
    for one in waiting:
        one.result(PATIENCE)
    del inner, outer
    wait_until(lambda: files_of_parcels() == before, "both are gone")


class Model:
    """Something big that can be called."""

    def __init__(self) -> None:
        self.data = b"x" * 200_000

    def __call__(self, number: int) -> int:
        return number + len(self.data)


def test_a_shared_object_may_be_the_function_of_tasks(pool: TaskPool) -> None:
    with pool.share(Model()) as model:
        function: Any = model
        assert pool.submit(function, 3).result(PATIENCE) == 200_003
        assert pool.map(function, [1, 2]) == [200_001, 200_002]
        assert list(pool.imap(function, [1, 2])) == [200_001, 200_002]


class SendsWhenPickled:
    """Submits tasks while it is being pickled, with shared objects of their own."""

    def __init__(self, pool: TaskPool, value: object) -> None:
        self.pool = pool
        self.value = value

    def __reduce__(self) -> tuple[type[int], tuple[()]]:
        self.pool.submit(tasks.nothing, self.pool.share(self.value))
        with pytest.raises(SerializationError):
            self.pool.submit(tasks.nothing, self.pool.share(self.value), lambda: None)
        return int, ()


def test_a_task_submitted_during_pickling_releases_nothing_of_the_outer_task(
    pool: TaskPool, tmp_path: Path
) -> None:
    """If the inner task took over the outer task's shared object, it would be released too early."""
    gate = tmp_path / "gate"
    waiting = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(2)]
    other = SendsWhenPickled(pool, b"y" * 200_000)
    args = (pool.share(b"x" * 200_000), other, pool.share(b"z" * 200_000))
    handle = pool.submit(tasks.echo, args)
    assert not _seen_shared.seen_shared
    del args
    gc.collect()
    gate.touch()
    assert handle.result(PATIENCE) == (b"x" * 200_000, 0, b"z" * 200_000)
    for one in waiting:
        one.result(PATIENCE)


def mapped_parcels(pid: int | str = "self") -> int:
    """Return how many parcels a process has mapped, including those that have no name any more."""
    with open(f"/proc/{pid}/maps") as file:
        return sum("mpkit-parcel-" in line for line in file)


def big_buffer() -> pickle.PickleBuffer:
    """Return an object whose data the receiver maps instead of copying it."""
    return pickle.PickleBuffer(bytearray(200_000))


def count_mapped(_data: Any) -> int:
    return mapped_parcels()


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
def test_a_worker_does_not_keep_closed_shared_objects_mapped() -> None:
    """Otherwise their memory stays in use."""
    with TaskPool(1, context="fork") as pool:
        for _ in range(5):
            with pool.share(big_buffer()) as shared:
                assert pool.apply(count_mapped, (shared,)) == 1


@pytest.mark.skipif(not os.path.isdir("/proc/self"), reason="Linux")
@pytest.mark.parametrize("busy", [True, False])
def test_a_worker_unmaps_a_shared_object_after_it_has_been_closed(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An idle worker checks for closed objects whenever it wakes up by itself.
    monkeypatch.setattr(_worker, "_SLICE_SECONDS", 0.02)
    monkeypatch.setattr(_worker, "_LOOK_AFTER_SHARED_NS", 20_000_000)
    with TaskPool(1, context="fork") as pool:
        with pool.share(big_buffer()) as shared, pool.share(big_buffer()) as other:
            assert pool.apply(count_mapped, (shared,)) == 1
            assert pool.apply(count_mapped, (other,)) == 2
            (worker,) = (snapshot.pid for snapshot in pool.workers())
            shared.close()

            def look() -> bool:
                if busy:
                    pool.apply(tasks.square, (1,))
                return mapped_parcels(worker) == 1

            wait_until(look, "only the other one is mapped")
            # And that one has not been mapped a second time.
            assert pool.apply(count_mapped, (other,)) == 1
        wait_until(lambda: mapped_parcels(worker) == 0, "none is mapped")


@pytest.mark.parametrize("way", ["map", "imap"])
def test_a_shared_object_in_a_function_lives_for_all_items(pool: TaskPool, way: str) -> None:
    function = functools.partial(add_length, pool.share(b"x" * 200_000))
    if way == "map":
        handle = pool.map_async(function, range(300), chunksize=1)
        del function
        gc.collect()
        results = handle.result(PATIENCE)
    else:
        iterator = pool.imap(function, iter(range(1500)))
        del function
        gc.collect()
        results = list(iterator)[:300]
    assert results == [200_000 + number for number in range(300)]


def add_length(data: Any, number: int) -> int:
    return len(data) + number


# -- big records ---------------------------------------------------------------------------------------------


def total_length(first: bytes, second: bytes) -> int:
    return len(first) + len(second)


@pytest.mark.parametrize("way", ["submit", "map"])
def test_function_and_arguments_together_fit_into_an_empty_inbox(
    pool: TaskPool, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If each alone could have 16 KiB, both together might not fit if the inbox's index is in the middle."""
    longest = 0
    submit = pool._engine.dispatcher.submit

    def look(task: Task) -> object:
        nonlocal longest
        longest = max(longest, len(task.record))
        return submit(task)

    monkeypatch.setattr(pool._engine.dispatcher, "submit", look)
    # Try lengths around those from which on each of them is sent as a parcel.
    extra = len(pickle.dumps(functools.partial(total_length, bytes(1000)), 5)) - 1000
    for blob in range(INLINE_BYTES - extra - 40, INLINE_BYTES - extra + 3, 6):
        function = functools.partial(total_length, bytes(blob))
        for size in range(INLINE_BYTES - 60, INLINE_BYTES + 1, 4):
            if way == "submit":
                assert pool.submit(function, bytes(size)).result(PATIENCE) == blob + size
            else:
                assert pool.map(function, [bytes(size)]) == [blob + size]
    # Check that records were used, up to almost the longest one possible.
    assert LONGEST_TASK - 200 < longest <= LONGEST_TASK


# -- Ctrl-C --------------------------------------------------------------------------------------------------


def test_ctrl_c_while_a_big_result_arrives_loses_no_result(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt = payload.adopt
    interrupts: list[int] = []
    waiting: list[bool] = []

    def adopt_and_interrupt(kind: int, record: bytes) -> tuple[int, object]:
        adopted = adopt(kind, record)
        if threading.current_thread() is threading.main_thread() and waiting and len(interrupts) < 3:
            interrupts.append(kind)
            # The collector's thread tells the outcome that is interrupted here.
            let_collector_go()
            signal.raise_signal(signal.SIGINT)
        return adopted

    monkeypatch.setattr(payload, "adopt", adopt_and_interrupt)
    with collector_held(pool) as let_collector_go:
        handle = pool.submit(bytes, 100_000)
        results = pool.map_async(tasks.big_after_a_while, range(6), chunksize=6)
        for waited_for in (handle, results):
            while not waited_for._is_settled():
                with contextlib.suppress(KeyboardInterrupt):
                    waiting.append(True)
                    waited_for.wait(PATIENCE)
                    waiting.clear()
        waiting.clear()
    assert interrupts
    assert handle.result() == bytes(100_000)
    assert results.result() == [bytes([n]) * 100_000 for n in range(6)]


# -- StopIteration -------------------------------------------------------------------------------------------


def test_awaiting_a_task_that_raises_stop_iteration_ends_with_a_runtime_error(pool: TaskPool) -> None:
    async def wait() -> int:
        return await asyncio.wait_for(asyncio.wrap_future(pool.submit(tasks.stop_iteration, 1)), PATIENCE)

    with pytest.raises(RuntimeError, match="StopIteration") as caught:
        asyncio.run(wait())
    assert isinstance(caught.value.__cause__, StopIteration)


# -- waiting -------------------------------------------------------------------------------------------------


def test_of_many_waiting_threads_one_always_fetches_outcomes(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Disable the periodic checks, which would hide it if the protocol did not wake a thread.
    for module in (_lead, _collector):
        monkeypatch.setattr(module, "_SLICE_SECONDS", 1000.0)
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 1000.0)
    gate = LockedCounter()

    def all_but_one_sleep() -> bool:
        return len(pool._engine.lead._followers) == 5

    for round_ in range(10):
        first, second = (pool.submit(gate.wait_for, 2 * round_ + n) for n in (1, 2))
        # Some wait for the same task as the leader, some for another one that ends later.
        threads = [
            threading.Thread(target=handle.result, daemon=True)
            for handle in (first, first, second, first, second, second)
        ]
        for thread in threads:
            thread.start()
        wait_until(all_but_one_sleep, "all but the leader sleep")
        gate.add()
        first.wait(PATIENCE)
        gate.add()
        for thread in threads:
            thread.join(PATIENCE)
            assert not thread.is_alive(), "no thread fetches outcomes"


def test_errors_and_dropped_iterators_are_freed_without_garbage_collection(pool: TaskPool) -> None:
    """The error of `apply` must not keep the caller's variables alive, nor a dropped `imap` its function."""

    class Big:
        """An object that the caller of `apply` has in a variable."""

    def fail(_big: Big) -> None:
        with pytest.raises(ZeroDivisionError):
            pool.apply(divmod, (1, 0))

    def read() -> weakref.ref[object]:
        results = pool.imap(abs, range(-100, 0))
        assert next(results) == 100
        return weakref.ref(results._lazy.sink)

    gc.collect()
    gc.disable()
    try:
        big = Big()
        in_hand = weakref.ref(big)
        fail(big)
        del big
        assert in_hand() is None
        sink = read()
        wait_until(lambda: sink() is None, "its tasks have ended")
    finally:
        gc.enable()


def pass_gate(gate: str, done: str) -> None:
    """One function for all tasks: only if it is known to be short, more of them are sent ahead."""
    if gate:
        tasks.wait_for_file(gate)
    if done:
        Path(done).touch()


@pytest.mark.parametrize("is_waited_for", [False, True])
def test_an_idle_worker_takes_over_tasks_queued_behind_a_long_one(
    is_waited_for: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise such a task begins late if a thread waits for it, or else only after the long task."""
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 1000.0 if is_waited_for else 0.02)
    monkeypatch.setattr(_lead, "_SLICE_SECONDS", 1000.0)
    took = Function.took
    monkeypatch.setattr(Function, "took", lambda self, run_ns: took(self, min(run_ns, 5_000)))
    gates, done = (tmp_path / "first", tmp_path / "second"), tmp_path / "done"
    with TaskPool(2, context="fork") as pool:
        pool.apply(pass_gate, ("", ""))
        wait_until(lambda: pool.statistics().idle == 2, "both are there")
        handles = [pool.submit(pass_gate, str(gate), "") for gate in gates]
        wait_until(lambda: all(handle.running() for handle in handles), "both are busy")
        first = handles[0]._task
        behind = pool.submit(pass_gate, "", str(done))
        assert first is not None
        assert behind._task is not None
        # The worker to which it was not sent becomes idle when its gate opens.
        others = gates[first.worker == behind._task.worker]

        def free_the_other_one() -> None:
            if is_waited_for:
                wait_until(lambda: pool._engine.board.words[FRONT], "it is waited for")
            others.touch()

        thread = threading.Thread(target=free_the_other_one)
        thread.start()
        if is_waited_for:
            behind.result(PATIENCE)
        wait_until(done.exists, "the other one has done it")
        thread.join()
        for gate in gates:
            gate.touch()
