"""Ctrl-C (or another signal) at any step of the main thread's work with a pool.

Afterwards the pool can be used as before, and no handle stays pending for ever.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import gc
import itertools
import multiprocessing
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import Mock

import pytest

from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.scheduling import FREE_THREADED
from mpkit.errors import ClosedError, TaskCancelled
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine import crew as _crew
from mpkit.pool._engine.engine import Engine
from mpkit.pool._engine.lead import Lead
from tests.contract import pool_tasks as tasks
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises, without_collections
from tests.helpers.waiting import PATIENCE, wait_until

# `tests/unit/shm/test_interrupts.py` says why this is only on request, and only on Python 3.10.
OPCODES = bool(os.environ.get("MPKIT_EVERY_OPCODE")) and sys.version_info < (3, 11)
#: The steps at which to interrupt. There is a limit because an operation that waits has no last step.
STEPS = range(6000) if OPCODES else range(1200)

Handles = list[TaskHandle[Any]]


@pytest.fixture(scope="module")
def pool() -> Iterator[TaskPool]:
    called = threading.Event()
    with TaskPool(processes=2, context="fork") as pool:
        # The thread for callbacks starts with the first callback, and then stays. It is started here, so that
        # no test is blamed for leaving it behind.
        pool.apply_async(tasks.square, (3,), callback=lambda _: called.set())
        assert called.wait(PATIENCE)
        yield pool


def submit_and_wait(pool: TaskPool, handles: Handles) -> None:
    handles.append(pool.submit(tasks.square, 3))
    handles[-1].result(PATIENCE)


def submit_many(pool: TaskPool, handles: Handles) -> None:
    for n in range(6):
        handles.append(pool.submit(tasks.square, n))
    for handle in handles[-6:]:
        handle.result(PATIENCE)


def wait_as_futures(pool: TaskPool, handles: Handles) -> None:
    handles.append(pool.submit(tasks.square, 3))
    handles[-1].add_done_callback(do_nothing)
    concurrent.futures.wait(handles[-1:], PATIENCE)


def be_called_back(pool: TaskPool, handles: Handles) -> None:
    called = threading.Event()
    handles.append(pool.apply_async(tasks.square, (3,), callback=lambda _: called.set()))
    assert called.wait(PATIENCE), "the callback was forgotten"


def do_nothing(_handle: object) -> None:
    """A callback, so that there is one to call."""


def copy_of(data: Any) -> bytes:
    return bytes(data)


def exchange_big_things(pool: TaskPool, handles: Handles) -> None:
    with pool.share(bytearray(100_000)) as shared:
        handles.append(pool.submit(copy_of, shared))
        handles.append(pool.submit(len, bytearray(100_000)))
        for handle in handles[-2:]:
            handle.result(PATIENCE)


def map_chunks(pool: TaskPool, handles: Handles) -> None:
    handles.append(pool.map_async(tasks.square, range(8), chunksize=2))
    handles[-1].result(PATIENCE)


def cancel(pool: TaskPool, handles: Handles) -> None:
    handles += [pool.submit(tasks.square, n) for n in range(3)]
    handles[-1].cancel()


def iterate(pool: TaskPool, handles: Handles) -> None:
    assert sum(pool.imap_unordered(tasks.square, iter(range(5)))) == 30


def was_cancelled(handle: TaskHandle[Any]) -> bool:
    try:
        handle.exception(PATIENCE)
    except TaskCancelled:
        return True
    return False


@needs_a_trace_that_raises
@pytest.mark.parametrize(
    "work",
    [
        submit_and_wait,
        submit_many,
        wait_as_futures,
        be_called_back,
        exchange_big_things,
        map_chunks,
        cancel,
        iterate,
    ],
    ids=lambda f: f.__name__,
)
def test_after_ctrl_c_at_any_step_the_pool_goes_on(
    pool: TaskPool, work: Callable[[TaskPool, Handles], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # If Ctrl-C comes in a destructor, Python only reports it and goes on. pytest's hook for such reports
    # would keep the object alive.
    monkeypatch.setattr(sys, "unraisablehook", lambda _report: None)
    handles: Handles = []
    for step in STEPS:
        reached = interrupt_at(step, partial(work, pool, handles), opcodes=OPCODES)
        # The pool works, whichever thread leads now.
        assert pool.submit(tasks.square, 5).result(PATIENCE) == 25
        if not reached:
            break
    assert step > 20
    cancelled = [was_cancelled(handle) for handle in handles]
    assert work is cancel or not any(cancelled), "an outcome was lost"
    handles.clear()
    # If a destructor was interrupted, the next parcel does its work.
    pool.share(bytearray(100_000)).close()
    wait_until(lambda: pool.statistics().queued == pool.statistics().running == 0, "nothing is under way")


class Alarm(BaseException):
    """What the handler of another signal raises.

    It is no `Exception`: during pickling, that would be taken for an error of the pickled object.
    """


@pytest.fixture
def alarms() -> Iterator[None]:
    def raise_alarm(_signum: int, _frame: object) -> None:
        raise Alarm

    before = signal.signal(signal.SIGUSR1, raise_alarm)
    with without_collections():
        yield
    signal.signal(signal.SIGUSR1, before)


#: In free-threaded builds, exceptions of signal handlers that reach the caller sometimes end in a SystemError
#: of the interpreter's weak references (seen on 3.14.7). See also `needs_a_trace_that_raises`.
needs_the_gil = pytest.mark.skipif(FREE_THREADED, reason="may end in a SystemError of the interpreter")


def alarm_at(step: int, operation: Callable[[], object]) -> bool:
    return interrupt_at(step, operation, signum=signal.SIGUSR1, raises=Alarm)


@needs_the_gil
@needs_a_trace_that_raises
@pytest.mark.parametrize(
    "work",
    [submit_and_wait, be_called_back, map_chunks, cancel],
    ids=lambda f: f.__name__,
)
def test_after_an_exception_of_a_signal_handler_at_any_step_the_pool_goes_on(
    pool: TaskPool,
    work: Callable[[TaskPool, Handles], None],
    monkeypatch: pytest.MonkeyPatch,
    alarms: None,
) -> None:
    """mpkit defers Ctrl-C at critical steps, but not other signals, so a task may be lost.

    Even then its handle must end, with an error; no handle stays pending for ever.
    """
    monkeypatch.setattr(sys, "unraisablehook", lambda _report: None)
    for step in STEPS:
        handles: Handles = []
        reached = alarm_at(step, partial(work, pool, handles))
        assert pool.submit(tasks.square, 5).result(PATIENCE) == 25
        for handle in handles:
            handle.wait(PATIENCE)
            assert handle.done(), f"step {step}: {handle!r}"
        if not reached:
            break
    assert step > 20
    pool.share(bytearray(100_000)).close()
    wait_until(lambda: pool.statistics().queued == pool.statistics().running == 0, "nothing is under way")


@needs_a_trace_that_raises
def test_ctrl_c_while_a_progress_bar_is_registered_leaves_nothing_locked(pool: TaskPool) -> None:
    """A plain `with lock:` could leave it locked: the handler may run when the lock has just been taken."""
    enters = InterruptibleLock.__enter__.__code__

    def trace(frame: FrameType, _event: str, _arg: Any) -> Any:
        return at_the_end if frame.f_code is enters else None

    def at_the_end(_frame: FrameType, event: str, _arg: Any) -> Any:
        if event == "return":
            signal.raise_signal(signal.SIGINT)
        return at_the_end

    bar = Mock(is_shown=True)
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        with contextlib.suppress(KeyboardInterrupt):
            pool._engine.bars.add(bar)
    finally:
        sys.settrace(before)
    was_locked = pool._engine.dispatcher.lock.is_owned()
    pool._engine.dispatcher.lock.unwind()
    assert not was_locked


#: A task that would not end within the time limit of any test.
touch_and_hang = partial(tasks.touch_and_wait, seconds=600.0)


@pytest.mark.parametrize(
    "wait_for_all",
    [
        lambda pool, paths: pool.map(touch_and_hang, paths, chunksize=1),
        lambda pool, paths: pool.map(touch_and_hang, paths, chunksize=3),
        lambda pool, paths: pool.starmap(touch_and_hang, [(path,) for path in paths], chunksize=1),
        lambda pool, paths: pool.apply(touch_and_hang, paths[:1]),
        lambda pool, paths: list(pool.imap(touch_and_hang, paths)),
        lambda pool, paths: pool.imap_unordered(touch_and_hang, paths).next(PATIENCE),
    ],
    ids=["map", "one chunk", "starmap", "apply", "imap", "next"],
)
def test_a_call_that_is_interrupted_cancels_its_tasks(
    wait_for_all: Callable[[TaskPool, list[str]], object], tmp_path: Path, alarms: None
) -> None:
    paths = [str(tmp_path / str(n)) for n in range(3)]
    main = threading.main_thread().ident
    assert main is not None

    def is_waiting() -> bool:
        # Interrupt only the wait: an exception while the tasks are being sent is another case.
        waiting = (TaskHandle.result.__code__, Lead.wait_for.__code__)
        frame: FrameType | None = sys._current_frames()[main]
        while frame is not None and frame.f_code not in waiting:
            frame = frame.f_back
        return frame is not None

    def interrupt() -> None:
        wait_until(lambda: os.path.exists(paths[0]) and is_waiting(), "the first one has begun")
        signal.pthread_kill(main, signal.SIGUSR1)

    with TaskPool(1) as pool:
        thread = threading.Thread(target=interrupt)
        thread.start()
        # Keep the traceback, and so all objects in its frames, as notebooks and interactive sessions do.
        with pytest.raises(Alarm) as _kept:
            wait_for_all(pool, paths)
        thread.join()
        # This task comes behind them in the only worker, so they have ended.
        assert pool.submit(tasks.square, 5).result(PATIENCE) == 25
        assert not any(map(os.path.exists, paths[1:]))


def test_no_item_begins_while_a_map_is_cancelled(tmp_path: Path) -> None:
    with TaskPool(2) as pool:
        handle = pool.map_async(touch_and_hang, [str(tmp_path / str(n)) for n in range(5000)], chunksize=1)
        wait_until(lambda: len(os.listdir(tmp_path)) == 2, "two have begun")
        assert handle.cancel()
        for _ in range(2):
            assert pool.submit(tasks.square, 5).result(PATIENCE) == 25
    assert len(os.listdir(tmp_path)) == 2


def is_fetched_or_can_be(pool: TaskPool, handle: TaskHandle[Any]) -> bool:
    return pool._engine.dispatcher.has_outcomes() or handle._is_settled()


@needs_the_gil
@needs_a_trace_that_raises
def test_an_interrupted_cancel_does_not_lose_the_outcome_of_another_task(
    pool: TaskPool, alarms: None
) -> None:
    """The thread that is interrupted may have fetched that outcome, and must not drop it."""
    for step in STEPS:
        other, running = pool.submit(tasks.square, 3), pool.submit(time.sleep, PATIENCE)
        # It is there, or another thread has just fetched it.
        wait_until(partial(is_fetched_or_can_be, pool, other), "an outcome is there")
        reached = alarm_at(step, running.cancel)
        running.cancel()
        for handle in (other, running):
            handle.wait(PATIENCE)
            assert handle.done(), f"step {step}: {handle!r}"
        if not reached:
            break
    assert step > 20


@needs_the_gil
@needs_a_trace_that_raises
@pytest.mark.parametrize("raises", [KeyboardInterrupt, Alarm])
def test_an_interrupted_wait_for_room_gives_up_its_place(raises: type[BaseException], alarms: None) -> None:
    """If its place in the queue for room stayed taken, later submits would wait for ever in an idle pool."""
    signum = signal.SIGINT if raises is KeyboardInterrupt else signal.SIGUSR1
    with TaskPool(1, context="fork", max_pending=1) as pool:

        def submit_some() -> None:
            for _ in range(3):
                pool.submit(time.sleep, 0.002)

        for step in STEPS:
            reached = interrupt_at(step, submit_some, signum=signum, raises=raises)
            assert pool._engine.room is not None
            assert not pool._engine.room.waiting, f"step {step}"
            assert pool.submit(tasks.square, 5).result(PATIENCE) == 25
            if not reached:
                break
        assert step > 20


def is_waited_for(handle: TaskHandle[Any]) -> bool:
    return bool(vars(handle).get("_waiters")) or handle._is_settled()


@needs_the_gil
@needs_a_trace_that_raises
def test_waiting_threads_are_told_even_if_the_fetching_thread_is_interrupted(
    pool: TaskPool, alarms: None
) -> None:
    """An interrupt between recording an outcome and telling the other threads must not leave them waiting."""
    for step in range(0, 450, 2):
        # If the task ends before the thread waits, this step interrupts nothing. That does not matter.
        handle = pool.submit(time.sleep, 0.003)
        waiting = threading.Thread(target=concurrent.futures.wait, args=([handle],))
        waiting.start()
        wait_until(partial(is_waited_for, handle), "it waits")
        alarm_at(step, partial(handle.result, PATIENCE))
        waiting.join(PATIENCE)
        assert not waiting.is_alive(), f"step {step}: {handle!r}"
    wait_until(lambda: not pool._engine.collector._watched, "no handle is watched any more")


@needs_the_gil
@needs_a_trace_that_raises
@pytest.mark.parametrize("step", range(0, 200, 7))
def test_a_pool_whose_terminate_is_interrupted_ends_at_the_next_one(step: int, alarms: None) -> None:
    pool = TaskPool(1, context="fork")
    handles: Handles = [pool.submit(time.sleep, PATIENCE) for _ in range(3)]
    wait_until(handles[0].running, "it runs")
    handles.append(pool.submit(tasks.square, 3))
    alarm_at(step, pool.terminate)
    pool.terminate()
    assert pool.join(PATIENCE)
    assert all(was_cancelled(handle) for handle in handles)


def leave_in_order() -> None:
    with TaskPool(1, context="fork") as pool:
        ended.append(weakref.ref(pool._engine))
        pool.submit(tasks.square, 3)


def leave_by_an_error() -> None:
    with contextlib.suppress(ZeroDivisionError), TaskPool(1, context="fork") as pool:
        ended.append(weakref.ref(pool._engine))
        raise ZeroDivisionError


#: The engines of the pools that were made. (A `TaskPool` is a facade; its engine is what would go on.)
ended: list[weakref.ref[Engine]] = []


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@needs_a_trace_that_raises
# Both functions begin with the same steps, those that make the pool. The first run covers them.
@pytest.mark.parametrize("leave, first", [(leave_in_order, 0), (leave_by_an_error, 30)])
@pytest.mark.usefixtures("_short_collections")
def test_ctrl_c_at_the_end_of_a_block_leaves_no_pool_behind(leave: Callable[[], None], first: int) -> None:
    """Otherwise the pool goes on until the program ends, although nothing refers to it any more."""
    for step in range(first, 90):
        reached = interrupt_at(step, leave, traced=(os.path.join("pool", "_facade.py"),))
        assert step > first or not ended, "the block has begun already"
        # The traceback of the interrupt refers to frames, and those to the pool.
        gc.collect()
        for engine in [found for found in (each() for each in ended) if found is not None]:
            wait_until(engine.is_over, f"step {step}: the pool is over")
        ended.clear()
        if not reached:
            break
    assert 10 < step < 89


class InterruptsWhenPickled:
    """An argument for an initializer: it is pickled while the pool is being made, and causes Ctrl-C then."""

    def __reduce__(self) -> tuple[type[object], tuple[()]]:
        signal.raise_signal(signal.SIGINT)
        return object, ()


@needs_a_trace_that_raises
def test_an_interrupt_while_a_closed_pool_refuses_a_task_leaves_nothing_locked() -> None:
    """Python 3.10 checks for signals where an `except` block begins, which may be just before a release."""
    with TaskPool(1) as pool:
        pool.close()
        lock = pool._engine.dispatcher.lock

        def refused() -> None:
            with contextlib.suppress(ClosedError):
                pool.submit(abs, 1)

        for step in itertools.count():
            reached = interrupt_at(step, refused)
            assert not lock.is_owned(), f"at step {step}"
            if not reached:
                break
        assert step > 10


def test_ctrl_c_while_a_pool_is_made_leaves_no_workers() -> None:
    children = set(multiprocessing.active_children())
    with pytest.raises(KeyboardInterrupt):
        TaskPool(2, initializer=isinstance, initargs=(InterruptsWhenPickled(), object), context="fork")
    assert set(multiprocessing.active_children()) == children


def test_ctrl_c_while_a_worker_is_started_releases_the_lock_for_starting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Since Python 3.14, it may come between the call that takes a lock and the block that releases it."""
    lock = InterruptibleLock()
    take = lock.acquire

    def acquire(*args: Any) -> bool:
        take(*args)
        raise KeyboardInterrupt

    lock.acquire = acquire
    monkeypatch.setattr(_crew, "_starting", lock)
    with pytest.raises(KeyboardInterrupt):
        TaskPool(processes=1)
    assert not lock.is_owned()


def test_a_sigint_handler_that_does_not_raise_does_not_stop_a_pool_from_being_made() -> None:
    interrupts: list[int] = []
    before = signal.signal(signal.SIGINT, lambda signum, _frame: interrupts.append(signum))
    try:
        with TaskPool(
            2, initializer=isinstance, initargs=(InterruptsWhenPickled(), object), context="fork"
        ) as pool:
            assert pool.apply(tasks.square, (3,)) == 9
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupts == [signal.SIGINT]
