"""Faults in the end of a pool, and in telling the outcomes of tasks, that were found once.

Each test is the smallest program that shows the fault.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.errors import InitializerFailed, TaskCancelled, WorkerCrashed
from mpkit.pool import PoolView, TaskPool
from mpkit.pool._engine import collector as _collector
from mpkit.pool._engine import lead as _lead
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine import losses as _losses
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Ledger
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._engine.supervisor import Supervisor
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    with TaskPool(1, context="fork") as pool:
        yield pool


def test_a_pool_whose_workers_cannot_be_signalled_ends(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a program that has given up its rights (`os.setuid`): it must not wait for workers for ever."""
    no_programs: list[ProcessIdentity] = []
    monkeypatch.setattr(Lane, "terminate", lambda _lane: no_programs)
    monkeypatch.setattr(Lane, "kill", lambda _lane, **_options: None)
    assert pool.submit(abs, -1).result(PATIENCE) == 1
    pool.terminate()
    assert pool.join(PATIENCE)


@pytest.mark.parametrize("end", [TaskPool.close, TaskPool.terminate])
def test_join_waits_for_a_thread_that_has_fetched_an_outcome_and_not_told_it(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, end: Callable[[TaskPool], None]
) -> None:
    """Otherwise the pool ends while the handle is pending, and its callbacks are never called."""
    has_it, go_on = threading.Event(), threading.Event()
    settle = Collector.settle

    def settle_later(collector: Collector, settlements: Settlements, *, leading: bool = False) -> None:
        if settlements and not has_it.is_set():
            has_it.set()
            assert go_on.wait(PATIENCE)
        settle(collector, settlements, leading=leading)

    called: list[str] = []
    gate = tmp_path / "gate"
    handle = pool.submit(tasks.wait_for_file, str(gate))
    # From here on, this thread fetches no outcomes.
    wait_until(handle.running, "it runs")
    monkeypatch.setattr(Collector, "settle", settle_later)
    handle.add_done_callback(lambda handle: called.append(handle.result()))
    waiting = threading.Thread(target=handle.wait)
    waiting.start()
    gate.touch()
    try:
        assert has_it.wait(PATIENCE)
        ending = threading.Thread(target=end, args=(pool,))
        ending.start()
        wait_until(lambda: "running" not in repr(pool), "the pool is about to end")
        # Long enough for the pool to end, if it did not wait.
        assert not pool.join(0.3)
    finally:
        go_on.set()
        waiting.join()
    ending.join()
    assert pool.join(PATIENCE)
    assert (handle.result(0), called) == (str(gate), [str(gate)])


def test_join_does_not_wait_for_ever_for_a_thread_that_never_tells_its_outcomes(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mpkit.pool._engine.engine._TELLING_SECONDS", 0.2)
    pool._engine.collector._telling[0] = []
    pool.close()
    assert pool.join(PATIENCE)


def test_a_thread_with_the_identifier_of_an_ended_caller_thread_can_join() -> None:
    """`join` refuses to be called in a callback. It must not take the new thread for the one of callbacks."""
    errors: list[BaseException] = []

    def join(pool: TaskPool) -> None:
        try:
            pool.join()
        except BaseException as error:
            errors.append(error)

    for _ in range(5):
        with TaskPool(1, context="fork") as pool:
            assert pool.apply(tasks.square, (3,)) == 9
        thread = threading.Thread(target=join, args=(pool,))
        thread.start()
        thread.join()
    assert not errors


def test_a_record_that_is_logged_during_the_last_callback_is_handled(
    pool: TaskPool, caplog: pytest.LogCaptureFixture
) -> None:
    called, go_on = threading.Event(), threading.Event()

    def hold(_result: object) -> None:
        called.set()
        assert go_on.wait(PATIENCE)

    with caplog.at_level(logging.INFO):
        pool.apply_async(tasks.square, (3,), callback=hold)
        assert called.wait(PATIENCE)
        assert pool.submit(tasks.log, "mpkit-test", "late").result(PATIENCE) is None
        pool.close()
        wait_until(lambda: pool._engine.collector._stopping, "only the callback is left")
        go_on.set()
        assert pool.join(PATIENCE)
    assert "late" in [record.getMessage() for record in caplog.records]


def test_a_call_that_is_requested_after_the_end_is_made(pool: TaskPool) -> None:
    """The thread for calls has ended by then, so the requesting thread must make the call itself."""
    pool.close()
    assert pool.join(PATIENCE)
    called: list[str] = []
    pool._engine.collector.call_back(lambda: called.append("it"))
    assert called == ["it"]


def test_a_wait_ends_if_a_signal_handler_has_fetched_its_outcome(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handler interrupts a wait, and waits for the same task: the outer wait must not sleep on."""
    for module in (_lead, _collector):
        monkeypatch.setattr(module, "_SLICE_SECONDS", 2 * PATIENCE)
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 2 * PATIENCE)
    gate = str(tmp_path / "gate")
    with TaskPool(2, context="fork") as pool:
        waiting = pool.submit(tasks.wait_for_file, gate)
        wait_until(waiting.running, "it runs")

        def in_between(_signum: int, _frame: object) -> None:
            assert pool.submit(tasks.touch, gate).result(PATIENCE) is None
            assert waiting.result(PATIENCE) == gate

        before = signal.signal(signal.SIGALRM, in_between)
        try:
            signal.setitimer(signal.ITIMER_REAL, 0.2)
            began = time.monotonic()
            assert waiting.result(PATIENCE) == gate
            assert time.monotonic() - began < PATIENCE
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("step", [(_losses, "_crash_error"), (Ledger, "_to_the_front")])
def test_a_death_that_cannot_be_settled_at_once_is_settled_at_the_second_try(
    monkeypatch: pytest.MonkeyPatch, step: tuple[Any, str]
) -> None:
    """If memory runs out while a death is settled, what had been found out must not be forgotten."""
    errors = iter([MemoryError()])
    act = getattr(*step)

    def act_later(*args: Any) -> Any:
        for error in errors:
            raise error
        return act(*args)

    monkeypatch.setattr(*step, act_later)
    monkeypatch.setattr(threading, "excepthook", lambda _report: None)
    with TaskPool(1, context="fork") as pool:
        handles = [pool.submit(tasks.square_or_die, number, 7) for number in range(5, 11)]
        outcomes = [handle.exception(PATIENCE) for handle in handles]
        statistics = pool.statistics()
    assert [type(outcome) for outcome in outcomes] == [type(None)] * 2 + [WorkerCrashed] + [type(None)] * 3
    assert (statistics.succeeded, statistics.crashed) == (5, 1)


def test_tasks_of_a_broken_pool_count_as_failed(tmp_path: Path) -> None:
    """They must not count as cancelled."""
    gate = tmp_path / "gate"
    with TaskPool(1, context="fork", initializer=tasks.initialize_badly, initargs=(str(gate),)) as pool:
        handles = [pool.submit(tasks.nothing) for _ in range(3)]
        gate.touch()
        for handle in handles:
            assert isinstance(handle.exception(PATIENCE), InitializerFailed)
        statistics = pool.statistics()
    assert (statistics.failed, statistics.cancelled) == (3, 0)


def test_cancelling_a_queued_task_wakes_a_submit_that_waits_for_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `submit` notices the room only up to a second later, when it looks by itself."""
    # Keep it from looking by itself during the test.
    monkeypatch.setattr("mpkit.pool._engine.room._SLICE_SECONDS", 10 * PATIENCE)
    gate = tmp_path / "gate"
    with TaskPool(1, context="fork", max_pending=1) as pool:
        running = pool.submit(tasks.wait_for_file, str(gate))
        wait_until(running.running, "it runs")
        queued = pool.submit(tasks.nothing)
        room = pool._engine.room
        assert room is not None
        more: list[Any] = []
        submitting = threading.Thread(target=lambda: more.append(pool.submit(tasks.square, 3)))
        submitting.start()
        wait_until(lambda: room.waiting, "it waits for room")
        assert queued.cancel()
        submitting.join(PATIENCE)
        assert more, "it was not woken when there was room"
        gate.touch()
        assert more[0].result(PATIENCE) == 9


def test_a_task_that_a_signal_handler_submits_and_cancels_never_runs(pool: TaskPool, tmp_path: Path) -> None:
    path = tmp_path / "ran"

    def submit_and_cancel() -> Any:
        handle = pool.submit(tasks.touch, str(path))
        handle.cancel()
        return handle

    # Run it with the pool's lock held, as a signal handler or a `__del__` may run in the middle of a method.
    handle = pool._engine.dispatcher.lock.run(submit_and_cancel)
    with pytest.raises(TaskCancelled):
        handle.result(PATIENCE)
    pool.close()
    assert pool.join(PATIENCE)
    assert not path.exists()


def test_a_handle_that_ends_just_before_it_is_watched_is_not_watched(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the handle stays watched, and from then on each outcome wakes the collector."""
    collector = pool._engine.collector
    handle = pool.submit(tasks.square, 3)
    watch = collector.watch

    def settle_first(watched: Any) -> None:
        handle.wait()
        watch(watched)

    monkeypatch.setattr(collector, "watch", settle_first)
    assert handle._condition is not None
    assert handle.result(0) == 9
    assert not collector._watched


def test_handles_are_watched_as_long_as_they_are_pending(pool: TaskPool, tmp_path: Path) -> None:
    """A handle is watched if something waits for it that does not fetch outcomes (`concurrent.futures`, say).

    For such a handle, the collector's thread fetches them.
    """
    gate = tmp_path / "gate"
    handles = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(3)]
    conditions = [handle._condition for handle in handles]
    assert len(conditions) == len(handles)
    assert pool._engine.collector._watched == set(handles)
    gate.touch()
    for handle in handles:
        handle.wait()
    wait_until(lambda: not pool._engine.collector._watched, "none is watched")


def test_an_exception_in_the_last_step_of_the_start_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """The supervisor's thread must end before its pipe is closed.

    Otherwise it would go on reading from the same descriptor number, whatever gets that next.
    """
    start = Supervisor.start

    def start_and_raise(supervisor: Supervisor) -> None:
        start(supervisor)
        raise SystemExit("of the handler of a signal")

    reported: list[object] = []
    monkeypatch.setattr(threading, "excepthook", reported.append)
    monkeypatch.setattr(Supervisor, "start", start_and_raise)
    threads = threading.active_count()
    with pytest.raises(SystemExit, match="of the handler"):
        TaskPool(1, context="fork")
    assert threading.active_count() == threads
    assert not reported
    assert not multiprocessing.active_children()


@pytest.mark.parametrize("part", [Lane, PoolView])
def test_an_exception_while_a_pool_is_made_leaves_nothing(
    part: type[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a worker, or the whole pool, stays until the program ends, and delays that."""

    def fail(*_: object, **__: object) -> None:
        raise SystemExit("of the handler of a signal")

    monkeypatch.setattr(part, "__init__", fail)
    threads = threading.active_count()
    with pytest.raises(SystemExit, match="of the handler"):
        TaskPool(1, context="fork")
    wait_until(lambda: not multiprocessing.active_children(), "no worker is left")
    assert threading.active_count() == threads
