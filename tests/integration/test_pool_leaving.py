"""Workers that leave (by themselves, or because the pool ends): none keeps the pool waiting, or breaks it.

Each test is the smallest program that shows a fault that was found once.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.processes import identity
from mpkit._shm.locks import remains as _remains
from mpkit.errors import ClosedError, InitializerFailed, PoolBroken, WorkerMemoryExceeded
from mpkit.pool import TaskPool
from mpkit.pool._engine import leavers as _leavers
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine import start_ups as _start_ups
from mpkit.pool._protocol.channel import LEAVING, STATE
from mpkit.pool._worker import worker as _worker
from mpkit.pool._worker.worker import _Worker
from tests.contract import pool_tasks as tasks
from tests.helpers.processes import wait_gone
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")

_LIMIT = 1 << 40


@pytest.fixture(autouse=True)
def _replaced_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has left but does not end is replaced soon. Most workers here never end by themselves."""
    monkeypatch.setattr(_leavers, "_GOING_SECONDS", 0.1)


def test_workers_that_are_told_to_leave_while_they_start_are_no_failures(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """If each counted as a failed start-up, ten of them would make a closed pool a broken one.

    Nor should the pool search all names in shared memory after each of them, which takes long.
    """
    looked: list[object] = []

    def look(*who: object) -> list[_remains.Member]:
        looked.append(who)
        return []

    monkeypatch.setattr(_remains, "family_of", look)
    monkeypatch.setattr(_Worker, "prepare", lambda _worker: signal.pause())
    pool = TaskPool(_start_ups.MOST_KILLED, context="fork")
    pool.close()
    assert pool.join(PATIENCE)
    with pytest.raises(ClosedError) as caught:
        pool.submit(tasks.square, 3)
    assert not isinstance(caught.value, PoolBroken)
    assert looked == []


def test_a_worker_that_cannot_be_examined_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """If it counted as dead, it would be left alone, and the program would wait for it at its end."""
    look = identity.of
    first: list[int] = []

    def of(pid: int) -> identity.ProcessIdentity | None:
        # As if no descriptor were left to examine the first worker.
        first[:] = first or [pid]
        return None if pid in first else look(pid)

    monkeypatch.setattr(identity, "of", of)
    with TaskPool(1, context="fork") as pool:
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert pool.submit(os.getpid).result(PATIENCE) not in first
        # It has been reaped: there is not even a zombie.
        with pytest.raises(ProcessLookupError):
            os.kill(first[0], 0)


# -- workers whose process does not end ----------------------------------------------------------------------


def stay(gate: str, done: str) -> int:
    """Leave a thread running until the file `gate` exists. The worker's process does not end before that."""

    def go_on() -> None:
        tasks.wait_for_file(gate)
        tasks.touch(done)

    # `daemon` must be given: a thread is a daemon by default in a worker that a daemon thread has forked.
    threading.Thread(target=go_on, daemon=False).start()
    return os.getpid()


def leave_child(_number: int) -> tuple[int, int]:
    """Leave a child process running, which multiprocessing waits for at the end of this process."""
    child = multiprocessing.get_context("fork").Process(target=signal.pause)
    child.start()
    assert child.pid is not None
    return os.getpid(), child.pid


def test_a_worker_that_has_left_and_does_not_end_is_replaced(tmp_path: Path) -> None:
    """Otherwise the next tasks wait for ever for a worker that takes no more."""
    gate, done = tmp_path / "gate", tmp_path / "done"
    with TaskPool(1, maxtasksperchild=1, context="fork") as pool:
        first = pool.submit(stay, str(gate), str(done)).result(PATIENCE)
        pids = {pool.submit(os.getpid).result(PATIENCE) for _ in range(2)}
        assert len(pids) == 2
        assert first not in pids
        # The thread that keeps it from ending may finish.
        assert {worker.pid: worker.state for worker in pool.workers()}[first] == "leaving"
        gate.touch()
        wait_until(done.exists, "the thread has ended by itself")
        wait_gone(first)
        assert pool.statistics().crashed == 0


@pytest.mark.parametrize("dies", [False, True])
def test_what_was_sent_ahead_to_a_worker_that_leaves_goes_to_others(
    dies: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They must not stay with the worker that leaves while other workers could run them."""
    begun, gate, never = tmp_path / "begun", tmp_path / "gate", tmp_path / "never"
    monkeypatch.setattr(_worker, "own_rss_bytes", lambda: 2 * _LIMIT if begun.exists() else 0)

    def nothing_or_stay(number: int) -> int:
        """One function for all tasks: only if it is known to be short, more of them are sent ahead."""
        if not number:
            begun.touch()
            tasks.wait_for_file(str(gate))
            stay(str(never), "")
        return number

    monkeypatch.setattr(_leavers, "_LEAST_SECONDS", 0.1)
    options: dict[str, Any] = {"max_memory_bytes": _LIMIT, "pickler": "cloudpickle", "grace_period": 0.01}
    with TaskPool(1, context="fork", **options) as pool:
        for _ in range(20):
            pool.apply(nothing_or_stay, (1,))
        (lane,) = pool._engine.dispatcher.lanes.values()
        first = pool.submit(nothing_or_stay, 0)
        others = [pool.submit(nothing_or_stay, number) for number in range(1, 10)]
        wait_until(begun.exists, "the first one runs")
        gate.touch()
        wait_until(lambda: lane.words[STATE] == LEAVING, "it leaves")
        if dies:
            os.kill(lane.pid, signal.SIGKILL)
        # From now on no worker is over the limit.
        begun.unlink()
        assert [handle.result(PATIENCE) for handle in (first, *others)] == list(range(10))
        assert (pool.statistics().succeeded, pool.statistics().crashed) == (30, 0)


def test_the_end_of_a_pool_does_not_wait_for_what_tasks_have_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise `join` never returns."""
    monkeypatch.setattr(_leavers, "_LEAST_SECONDS", 0.2)
    with TaskPool(2, maxtasksperchild=1, context="fork", grace_period=0.01) as pool:
        handles = [pool.submit(leave_child, number) for number in range(4)]
        pool.close()
        assert pool.join(PATIENCE)
        pids = [handle.result(0) for handle in handles]
        assert len({worker for worker, _ in pids}) == 4
        wait_gone(*(pid for pair in pids for pid in pair))


def test_the_number_of_workers_that_have_left_and_stay_is_limited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """If there are more of them than the pool has workers, the oldest ones are ended."""
    monkeypatch.setattr(_leavers, "_GOING_SECONDS", 0.0)
    monkeypatch.setattr(_leavers, "_LEAST_SECONDS", 0.1)
    never = str(tmp_path / "never")
    with TaskPool(1, maxtasksperchild=1, context="fork", grace_period=0.01) as pool:
        pids: list[int] = []
        for _ in range(4):
            pids.append(pool.submit(stay, never, "").result(PATIENCE))
            assert len(pool.workers()) <= 2
        assert len(set(pids)) == 4
        wait_gone(*pids[:2])
        pool.terminate()
    assert f"worker {pids[0]} " in caplog.text


def test_a_worker_that_has_left_does_not_stay_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(_leavers, "_MOST_SECONDS", 0.1)
    with TaskPool(1, maxtasksperchild=1, context="fork", grace_period=0.01) as pool:
        wait_gone(pool.submit(stay, str(tmp_path / "never"), "").result(PATIENCE))
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_worker_that_stays_does_not_delay_the_checks_of_the_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise a task without a time limit is first checked when that worker is, after up to a minute."""
    monkeypatch.setattr(_leavers, "_GOING_SECONDS", 0.0)
    monkeypatch.setattr(_leavers, "_MOST_SECONDS", 10 * PATIENCE)
    with TaskPool(1, maxtasksperchild=1, context="fork", max_memory_bytes=_LIMIT) as pool:
        pool.submit(stay, str(tmp_path / "never"), "").result(PATIENCE)
        supervisor = pool._engine.supervisor
        wait_until(lambda: supervisor.looks_at > time.monotonic() + PATIENCE, "it sleeps")

        def too_many(_pid: int) -> int:
            return _LIMIT + 1

        monkeypatch.setattr(_limits, "rss_bytes", too_many)
        with pytest.raises(WorkerMemoryExceeded):
            pool.submit(time.sleep, 10 * PATIENCE).result(PATIENCE)
        pool.terminate()


def test_a_worker_that_leaves_is_not_idle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """`statistics` must not count it as idle when `workers` says that it is leaving."""
    monkeypatch.setattr(_leavers, "_GOING_SECONDS", PATIENCE)
    gate = tmp_path / "gate"
    with TaskPool(1, maxtasksperchild=1, context="fork") as pool:
        pool.submit(stay, str(gate), str(tmp_path / "done")).result(PATIENCE)
        wait_until(lambda: [worker.state for worker in pool.workers()] == ["leaving"], "it has left")
        statistics = pool.statistics()
        assert (statistics.workers, statistics.idle, statistics.running) == (1, 0, 0)
        gate.touch()


def stay_and_fail(gate: str) -> None:
    stay(gate, "")
    raise ValueError(gate)


def test_a_failed_initializer_that_leaves_a_thread_breaks_the_pool_at_once(tmp_path: Path) -> None:
    """The tasks must not wait for the end of the process, which the thread delays."""
    never = str(tmp_path / "never")
    pool = TaskPool(1, initializer=stay_and_fail, initargs=(never,), context="fork", grace_period=0.01)
    with pytest.raises(InitializerFailed, match="never"):
        pool.submit(tasks.square, 3).result(PATIENCE)
    assert pool.join(PATIENCE)


def test_terminate_does_not_wait_as_long_as_close_would(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`terminate` must also end a worker that `close` has already told to leave."""
    monkeypatch.setattr(_leavers, "_LEAST_SECONDS", 2 * PATIENCE)
    with TaskPool(1, context="fork") as pool:
        pid = pool.submit(stay, str(tmp_path / "never"), "").result(PATIENCE)
        (lane,) = pool._engine.dispatcher.lanes.values()
        pool.close()
        wait_until(lambda: lane.told_to_leave, "it was told")
        pool.terminate()
        assert pool.join(PATIENCE)
        wait_gone(pid)


def start_a_program(pids: str) -> None:
    program = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    Path(pids).write_text(str(program.pid))
    program.wait()


def test_terminate_ends_a_program_that_a_task_has_started(tmp_path: Path) -> None:
    """Otherwise the program goes on, and nothing is left that would end it."""
    started = tmp_path / "pid"
    with TaskPool(1, context="fork") as pool:
        pool.submit(start_a_program, str(started))
        wait_until(lambda: started.exists() and started.read_text(), "it is started")
        pool.terminate()
        assert pool.join(PATIENCE)
    wait_gone(int(started.read_text()))
