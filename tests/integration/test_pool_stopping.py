"""Tasks that are being stopped. Each test is the smallest program in which one once ran on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.processes import signalling
from mpkit.errors import TaskTimeout
from mpkit.pool import TaskPool
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine.lane import Lane
from mpkit.pool._protocol.channel import STOP
from mpkit.pool._worker.worker import _Worker
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")

#: A grace period that never ends.
_FOR_EVER = 1e6


def test_a_task_that_is_being_stopped_is_held_to_the_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It must not use as much memory as it likes until its grace period ends."""
    begun = tmp_path / "begun"
    limit = 1 << 40
    with TaskPool(1, context="fork", max_memory_bytes=limit, grace_period=_FOR_EVER) as pool:
        handle = pool.with_options(timeout=0.1).submit(tasks.ignore_interrupts, str(begun))
        lane = next(iter(pool._engine.dispatcher.lanes.values()))
        # On a very busy machine, the interrupt may come before the task ignores it.
        wait_until(lambda: handle.done() or (begun.exists() and lane.stop), "it is being stopped")
        monkeypatch.setattr(_limits, "rss_bytes", lambda _pid: 2 * limit)
        with pytest.raises(TaskTimeout):
            handle.result(PATIENCE)


def test_a_task_that_ends_while_its_stack_is_written_has_timed_out_and_its_worker_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    with TaskPool(1, context="fork", grace_period=_FOR_EVER) as pool:
        pid = pool.submit(os.getpid).result(PATIENCE)

        def end_meanwhile(lane: Lane, _seconds: float) -> str:
            stop = lane.stop
            assert stop is not None
            gate.touch()

            def has_ended() -> bool:
                pool._engine.collector.work()
                return stop.ended is not None

            wait_until(has_ended, "the task has ended")
            return "here it was"

        monkeypatch.setattr(_limits, "live_stack", end_meanwhile)
        handle = pool.with_options(timeout=0.01).submit(tasks.wait_for_file, str(gate))
        with pytest.raises(TaskTimeout) as caught:
            handle.result(PATIENCE)
        assert caught.value.stack == "here it was"
        assert pool.submit(os.getpid).result(PATIENCE) == pid


def test_a_terminated_pool_does_not_wait_for_its_grace_period_if_its_tasks_end_at_once(
    tmp_path: Path,
) -> None:
    begun = tmp_path / "begun"
    with TaskPool(2, context="fork", grace_period=_FOR_EVER) as pool:
        handle = pool.submit(tasks.touch_and_wait, str(begun))
        wait_until(begun.exists, "the task has begun")
        pool.terminate()
        assert pool.join(PATIENCE)
        assert handle.cancelled()


def test_a_worker_that_ignores_the_end_of_its_pool_is_killed(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    with TaskPool(1, context="fork", grace_period=0.05) as pool:
        handle = pool.submit(tasks.hold_out, str(begun))
        wait_until(begun.exists, "it ignores signals")
        pool.terminate()
        assert pool.join(PATIENCE)
        assert handle.cancelled()


def test_a_sigint_from_outside_does_not_interrupt_the_task(tmp_path: Path) -> None:
    """Ctrl-C in a terminal also reaches the workers. The parent alone decides what happens to their tasks."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    with TaskPool(1, context="fork") as pool:
        handle = pool.submit(tasks._touch_and_wait_for, str(begun), str(gate))
        wait_until(begun.exists, "the task has begun")
        worker = handle.worker_pid
        assert worker is not None
        os.kill(worker, signal.SIGINT)
        gate.touch()
        assert handle.exception(PATIENCE) is None
        assert pool.submit(os.getpid).result(PATIENCE) == worker


@pytest.mark.parametrize("when", ["before it looks", "after it has looked"])
def test_an_interrupt_just_after_the_worker_has_taken_the_task_stops_it(
    when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If it were lost, the task would run on for a grace period, and its worker would be terminated then."""
    interrupts: list[int] = []
    run, on_interrupt = _Worker._run, _Worker._on_interrupt
    send = signalling.send_signal_if_allowed

    def note(worker: _Worker, signum: int, frame: Any) -> None:
        interrupts.append(signum)
        on_interrupt(worker, signum, frame)

    def run_late(worker: _Worker, number: int, *rest: Any) -> Any:
        # As if the worker lost its core at this point.
        wait_until(lambda: interrupts or worker.channel.words[STOP] == number, "it is to be stopped")
        if when == "before it looks":
            wait_until(lambda: interrupts, "it has been interrupted")
        return run(worker, number, *rest)

    def send_late(process: Any, signum: int) -> None:
        if when == "after it has looked" and signum == signal.SIGINT:
            wait_until(lambda: not lane.words[STOP], "the worker has seen it by itself")
        send(process, signum)

    monkeypatch.setattr(_Worker, "_on_interrupt", note)
    monkeypatch.setattr(_Worker, "_run", run_late)
    monkeypatch.setattr(signalling, "send_signal_if_allowed", send_late)
    with TaskPool(1, context="fork", grace_period=_FOR_EVER) as pool:
        lane = next(iter(pool._engine.dispatcher.lanes.values()))
        handle = pool.submit(time.sleep, 1000)
        wait_until(handle.running, "the worker has taken it")
        assert handle.cancel()
        # Only that task is interrupted. The next one runs undisturbed, in the same worker.
        interrupted = pool.submit(tasks.pid_of_worker_after, 0.1)
        assert interrupted.result(PATIENCE) == lane.pid
