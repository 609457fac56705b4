"""Programs that a task has started end if the task is stopped or its worker dies; otherwise they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from mpkit._platform.processes import families, family_tree, identity
from mpkit.errors import TaskCancelled, TaskTimeout, WorkerCrashed, WorkerMemoryExceeded
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine.lane import Lane
from mpkit.pool._worker import outbox as _worker_outbox
from tests.conftest import own_or_of_the_server
from tests.contract import pool_tasks as tasks
from tests.helpers import leftovers
from tests.helpers.processes import ROOT, gone, python, to_be_killed, wait_gone
from tests.helpers.waiting import PATIENCE, wait_until
from tests.integration import program_tasks as programs

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals")

_LIMIT = 1 << 40
_STUBBORN = ("SIGINT", "SIGTERM")


@pytest.fixture(autouse=True)
def _short_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool notes the children of its workers at short intervals."""
    monkeypatch.setattr(_limits, "_SAMPLE_WITHOUT_SECONDS", 0.05)
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 0.05)


def pid_in(path: Path) -> int:
    wait_until(path.exists, "the program is started")
    return int(path.read_text())


def lane_of(pool: TaskPool) -> Lane:
    (lane,) = pool._engine.dispatcher.lanes.values()
    return lane


def let_a_tick_pass(pool: TaskPool, pid: int) -> None:
    """Wait until processes that are started from now on have a later start time than the process `pid`.

    Start times are counted in ticks of the system's clock.
    """
    process = identity.of(pid)
    assert process is not None
    clock = lane_of(pool).start_clock
    wait_until(lambda: clock.at(time.monotonic_ns()) > process.started, "a tick has passed")


@contextmanager
def program_of_an_earlier_task(pool: TaskPool, path: Path) -> Iterator[int]:
    """Give the block the pid of a program that a task has started and left, and check that it goes on."""
    pid = pool.submit(programs.start, str(path)).result(PATIENCE)
    try:
        assert pid_in(path) == pid
        let_a_tick_pass(pool, pid)
        yield pid
        assert not gone(pid)
    finally:
        os.kill(pid, signal.SIGKILL)
        wait_gone(pid)


def reach_the_time_limit(pool: TaskPool, handle: TaskHandle[Any]) -> None:
    engine = pool._engine
    with engine.dispatcher.lock:
        (task,) = lane_of(pool).sent.values()
        task.timeout = 0.0
    engine.supervisor.poke()
    with pytest.raises(TaskTimeout):
        handle.result(PATIENCE)


def be_cancelled(_pool: TaskPool, handle: TaskHandle[Any]) -> None:
    assert handle.cancel()
    with pytest.raises(TaskCancelled):
        handle.result(PATIENCE)


def outgrow_the_memory_limit(_pool: TaskPool, handle: TaskHandle[Any]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_limits, "rss_bytes", lambda _pid: 2 * _LIMIT)
        with pytest.raises(WorkerMemoryExceeded):
            handle.result(PATIENCE)


def lose_its_worker(pool: TaskPool, handle: TaskHandle[Any]) -> None:
    lane = lane_of(pool)
    # Forget children that were noted earlier: they may have been short-lived ones.
    lane.children = []
    wait_until(lambda: lane.children, "its children have been noted")
    os.kill(lane.pid, signal.SIGKILL)
    with pytest.raises(WorkerCrashed):
        handle.result(PATIENCE)


def lose_its_worker_while_that_is_looked_at(pool: TaskPool, handle: TaskHandle[Any]) -> None:
    """Kill the worker while the pool is listing its children.

    The pool must use the list from before, not forget it.
    """
    lane = lane_of(pool)
    look = family_tree.children_of

    def die_and_look(worker: identity.ProcessIdentity, *most: int) -> list[identity.ProcessIdentity]:
        if lane.children and worker == lane.identity and identity.is_alive(worker):
            os.kill(worker.pid, signal.SIGKILL)
            wait_until(lambda: not identity.is_alive(worker), "it is dead")
        return look(worker, *most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(family_tree, "children_of", die_and_look)
        with pytest.raises(WorkerCrashed):
            handle.result(PATIENCE)


Stopping = Callable[[TaskPool, TaskHandle[Any]], None]


@pytest.mark.parametrize(
    "stop", [reach_the_time_limit, be_cancelled, outgrow_the_memory_limit, lose_its_worker]
)
@pytest.mark.parametrize("ignored", [(), _STUBBORN], ids=["", "stubborn"])
@own_or_of_the_server
def test_programs_of_a_stopped_task_end(
    start_method: str, stop: Stopping, ignored: tuple[str, ...], tmp_path: Path
) -> None:
    """And the program of an earlier task, which has returned, goes on."""
    with (
        TaskPool(1, context=start_method, grace_period=0.1, max_memory_bytes=_LIMIT) as pool,
        program_of_an_earlier_task(pool, tmp_path / "earlier"),
    ):
        path = tmp_path / "program"
        handle = pool.submit(programs.run_shell, str(path), *ignored)
        pid = pid_in(path)
        stop(pool, handle)
        wait_gone(pid)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


@pytest.mark.parametrize("starter", programs.STARTERS, ids=lambda starter: starter.__name__)
@pytest.mark.parametrize("stop", [be_cancelled, lose_its_worker])
def test_programs_end_in_whatever_way_the_task_has_started_them(
    stop: Stopping, starter: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "program"
    with TaskPool(1, context="fork", grace_period=0.1) as pool:
        handle = pool.submit(starter, str(path), *_STUBBORN)
        pid = pid_in(path)
        worker = lane_of(pool).pid
        stop(pool, handle)
        wait_gone(pid)
    assert not leftovers.names_of(worker)


def test_programs_end_if_the_worker_dies_while_its_children_are_listed(tmp_path: Path) -> None:
    path = tmp_path / "program"
    with TaskPool(1, context="fork", grace_period=0.1) as pool:
        handle = pool.submit(programs.run, str(path), *_STUBBORN)
        pid = pid_in(path)
        lose_its_worker_while_that_is_looked_at(pool, handle)
        wait_gone(pid)


@pytest.mark.parametrize("ignored", [(), _STUBBORN], ids=["", "stubborn"])
@own_or_of_the_server
def test_programs_have_ended_when_a_terminated_pool_has_been_joined(
    start_method: str, ignored: tuple[str, ...], tmp_path: Path
) -> None:
    path = tmp_path / "program"
    with (
        TaskPool(1, context=start_method, grace_period=0.1) as pool,
        program_of_an_earlier_task(pool, tmp_path / "earlier"),
    ):
        pool.submit(programs.run, str(path), *ignored)
        pid = pid_in(path)
        pool.terminate()
        assert pool.join(PATIENCE)
        assert gone(pid)


def test_programs_of_a_terminated_initializer_end(tmp_path: Path) -> None:
    path = tmp_path / "program"
    with TaskPool(
        1, context="fork", grace_period=0.1, initializer=programs.run, initargs=(str(path), *_STUBBORN)
    ) as pool:
        pid = pid_in(path)
        pool.terminate()
        assert pool.join(PATIENCE)
        assert gone(pid)


def test_programs_that_end_at_once_are_not_given_the_grace_period(tmp_path: Path) -> None:
    """The pool must not wait for the whole grace period (nearly endless here) once the program has ended."""
    path = tmp_path / "program"
    with TaskPool(1, context="fork", grace_period=1e6) as pool:
        handle = pool.submit(programs.start_and_wait, str(path))
        pid = pid_in(path)
        be_cancelled(pool, handle)
        pool.close()
        assert pool.join(PATIENCE)
        assert gone(pid)


def test_a_task_may_clean_up_when_it_is_terminated(tmp_path: Path) -> None:
    """It may take as long as the grace period, which is nearly endless here."""
    path, interrupted, cleaned = (tmp_path / name for name in ("program", "interrupted", "cleaned"))
    with TaskPool(1, context="fork", grace_period=1e6) as pool:
        lane = lane_of(pool)
        handle = pool.submit(programs.start_and_clean_up, str(path), str(interrupted), str(cleaned))
        pid = pid_in(path)
        assert handle.cancel()
        wait_until(interrupted.exists, "it has been interrupted")
        assert lane.stop is not None
        lane.stop.due = 0.0
        pool._engine.supervisor.poke()
        wait_until(cleaned.exists, "it has cleaned up")
        wait_gone(pid)


def test_a_program_of_the_next_task_is_not_ended_with_the_stopped_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The supervisor may end the programs of a stopped task late, when the next task has started some."""
    first, second = tmp_path / "first", tmp_path / "second"
    end_programs = _limits.Limits._end_programs

    def end_late(limits: _limits.Limits, lane: Lane, stop: Any) -> None:
        pid_in(second)
        end_programs(limits, lane, stop)

    monkeypatch.setattr(_limits.Limits, "_end_programs", end_late)
    with TaskPool(1, context="fork", grace_period=0.1) as pool:
        handle = pool.submit(programs.start_and_wait, str(first), "SIGINT")
        pid = pid_in(first)
        be_cancelled(pool, handle)
        with program_of_an_earlier_task(pool, second):
            wait_gone(pid)


@pytest.mark.parametrize("when", ["its inbox is emptied", "what it has started is looked for"])
def test_a_task_that_ends_just_before_it_is_stopped(
    when: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The programs of the worker's next task are not taken for those of the stopped one, and go on."""
    there, path = tmp_path / "there", tmp_path / "program"
    with TaskPool(1, context="fork", grace_period=0.1) as pool:
        lane, dispatcher = lane_of(pool), pool._engine.dispatcher
        first = pool.submit(programs.run_when, str(there))
        wait_until(lambda: lane.running() == first.task_id, "it is running")
        # So that the next one is sent ahead.
        lane.sent[first.task_id].function.ahead = 2
        second = pool.submit(programs.run_when, str(there), str(path))
        assert set(lane.sent) == {first.task_id, second.task_id}
        owner: Any = dispatcher
        name = "give_to_others"
        if when != "its inbox is emptied":
            owner, name = family_tree, "descendants_since"
        step = getattr(owner, name)
        reached = threading.Event()

        def next_has_begun() -> bool:
            pool._engine.collector.work()
            return path.exists()

        def step_late(*arguments: Any) -> Any:
            if not reached.is_set():
                there.touch()
                wait_until(next_has_begun, "the next one has begun")
            result = step(*arguments)
            reached.set()
            return result

        monkeypatch.setattr(owner, name, step_late)
        be_cancelled(pool, first)
        assert reached.wait(PATIENCE)
        wait_until(lambda: lane.stop is None and not dispatcher.roster.stopped, "the stop is over")
        os.kill(pid_in(path), signal.SIGKILL)
        assert second.result(PATIENCE) == -signal.SIGKILL


def test_the_fork_server_of_a_worker_outlives_a_stopped_task(tmp_path: Path) -> None:
    """The fork server belongs to the worker, even if a task was the first to need it.

    The processes that it has forked for the stopped task end, also if the server is older than the task.
    """
    # The worker has plenty of time to leave the task, even on a busy machine; the task's processes have none.
    with TaskPool(1, context="fork", grace_period=1e6) as pool:
        pool._engine.limits._programs._grace_period = 0.1
        servers: set[int] = set()
        for name in ("first", "second"):
            handle = pool.submit(programs.child, str(tmp_path / name), *_STUBBORN)
            pid = pid_in(tmp_path / name)
            be_cancelled(pool, handle)
            wait_gone(pid)
            server = pool.submit(programs.fork_server).result(PATIENCE)
            assert server is not None
            assert not gone(server)
            let_a_tick_pass(pool, server)
            servers.add(server)
        assert len(servers) == 1
        assert lane_of(pool).pid == pool.submit(os.getpid).result(PATIENCE)


def put_torn(outbox: _worker_outbox.Outbox, _record: bytes) -> None:
    outbox.put(b"torn")


def test_a_worker_that_corrupts_its_memory_is_killed_without_the_pools_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The supervisor must kill it, not the thread that has found the damage.

    That thread holds the pool's lock, and would hold it until the whole family of the worker has stopped.
    """
    killers: list[tuple[str, bool]] = []
    kill = families.kill_families

    def note(*arguments: Any, **options: Any) -> None:
        killers.append((threading.current_thread().name, pool._engine.dispatcher.lock.is_owned()))
        kill(*arguments, **options)

    monkeypatch.setattr(families, "kill_families", note)
    monkeypatch.setattr(_worker_outbox.Outbox, "put_log", put_torn)
    with TaskPool(1, context="fork", name="p") as pool:
        with pytest.raises(WorkerCrashed):
            pool.submit(tasks.log, "mpkit-test", "text").result(PATIENCE)
        assert killers == [("mpkit-p-supervisor", False)]


_PROGRAM = """
import sys
from mpkit import TaskPool
from tests.integration import program_tasks as programs

if __name__ == "__main__":
    pool = TaskPool(1, context=sys.argv[1], grace_period=0.1)
    handle = pool.submit(programs.run, sys.argv[2], "SIGINT", "SIGTERM")
    if sys.argv[3] == "wait":
        with pool:
            handle.result()
    sys.stdin.readline()
"""


@pytest.mark.parametrize("how", ["end", "Ctrl-C", "SIGKILL"])
@own_or_of_the_server
def test_programs_of_tasks_end_with_the_main_program(start_method: str, how: str, tmp_path: Path) -> None:
    path = tmp_path / "program"
    script = tmp_path / "script.py"
    script.write_text(_PROGRAM)
    arguments = (script, start_method, path, "wait" if how == "Ctrl-C" else "end")
    env = {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    with (
        to_be_killed() as temporary,
        python(*arguments, stdin=subprocess.PIPE, env={**env, **temporary}) as program,
    ):
        pid = pid_in(path)
        if how == "end":
            program.communicate("\n", timeout=PATIENCE)
        else:
            program.send_signal(signal.SIGINT if how == "Ctrl-C" else signal.SIGKILL)
            program.wait(PATIENCE)
        wait_gone(pid)
        # The resource tracker removes them. The end of the block would kill it, with the program's group.
        wait_until(lambda: not leftovers.names_of(program.pid), "its names are removed")
