"""The thread that looks after the workers outlives what goes wrong in it, or says so and ends the pool."""

from __future__ import annotations

import contextlib
import errno
import faulthandler
import itertools
import math
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue, LockedCounter
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.exits import ExitWatcher
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.processes.stat_file import is_stopped
from mpkit._platform.resources import memory
from mpkit._platform.threads import readiness
from mpkit._shm.locks import remains
from mpkit.errors import PoolBroken, QueueEmpty, TaskTimeout, WaitTimeout, WorkerCrashed
from mpkit.introspect import _stacks
from mpkit.pool import TaskPool
from mpkit.pool._engine import insight as _insight
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine import reports as _reports
from mpkit.pool._engine import start_ups as _start_ups
from mpkit.pool._engine import supervisor as _supervisor
from mpkit.pool._protocol.channel import STACK_PIPE
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskPool]:
    monkeypatch.setattr(_supervisor, "_FIRST_PAUSE", 0.001)
    monkeypatch.setattr(_supervisor, "_LONGEST_PAUSE", 0.001)
    with TaskPool(1, context="fork", grace_period=0.2) as pool:
        pool.apply(tasks.square, (1,))
        yield pool
        pool.terminate()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """The exceptions that threads told of."""
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    return errors


def failing(times: float, original: Callable[..., Any]) -> Callable[..., Any]:
    """Like `original`, but the first calls raise."""
    left = times

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise OSError("out of means")
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize("step", ["look_after_crew", "bury"])
def test_an_error_that_passes_ends_nothing(
    pool: TaskPool, step: str, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Any one ended the thread, and the pool with it, without a word."""
    engine = pool._engine
    monkeypatch.setattr(engine, step, failing(3, getattr(engine, step)))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [str(error) for error in reported] == ["out of means"]


def test_a_worker_whose_burial_fails_half_way_is_buried_once(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    crew = pool._engine.crew
    monkeypatch.setattr(crew, "note_death_of", failing(2, crew.note_death_of))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(reported) == 1
    assert pool.statistics().crashed == 1


def test_a_worker_that_could_not_be_watched_does_not_stay(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Nobody saw its end, and the pool had none."""
    watcher = pool._engine.supervisor._watcher
    monkeypatch.setattr(watcher, "add", failing(1, watcher.add))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [str(error) for error in reported] == ["out of means"]
    pool.terminate()
    assert pool.join(PATIENCE)


def test_a_death_is_not_forgotten_though_the_pokes_cannot_be_read(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Its task never ended."""
    supervisor = pool._engine.supervisor
    watcher = supervisor._watcher
    wait = watcher.wait
    deaths: list[ProcessIdentity] = []
    waits = threading.Event()

    def wait_poked(*arguments: Any, **options: Any) -> tuple[set[ProcessIdentity], bool]:
        waits.set()
        ended, _ = wait(*arguments, **options)
        deaths.extend(ended)
        return ended, True

    def read_unless_first_death(descriptor: int) -> bytes:
        if deaths and not reported:
            raise MemoryError("none left")
        return readiness.read_available(descriptor)

    monkeypatch.setattr(watcher, "wait", wait_poked)
    monkeypatch.setattr(_supervisor, "read_available", read_unless_first_death)
    supervisor.poke()
    assert waits.wait(PATIENCE)
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [str(error) for error in reported] == ["none left"]


def test_what_has_been_handed_in_is_told_though_the_next_stop_fails(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """The outcome of the task before was forgotten (no memory): its handle never ended."""
    for _ in range(20):
        # Known to be short, so that the next ones are sent together.
        pool.apply(time.sleep, (0.0,))
    # The collector is not rung for the first one, and nobody waits for it: the supervisor is who fetches it.
    short = pool.submit(time.sleep, 0.1)
    long = pool.with_options(timeout=0.3).submit(time.sleep, PATIENCE)
    dispatcher = pool._engine.dispatcher
    give_to_others = dispatcher.give_to_others
    refused: list[None] = []

    def refuse(*arguments: Any) -> None:
        if not refused:
            refused.append(None)
            raise MemoryError("none left")
        give_to_others(*arguments)

    monkeypatch.setattr(dispatcher, "give_to_others", refuse)
    wait_until(lambda: reported, "the first stop has failed")
    assert short.result(PATIENCE) is None
    with pytest.raises(TaskTimeout):
        long.result(PATIENCE)
    assert [str(error) for error in reported] == ["none left"]


def test_a_lack_of_descriptors_that_passes_does_not_break_the_pool(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As in a server that has just accepted too many connections: nothing is wrong with the workers.
    crew = pool._engine.crew
    start = crew.start
    refused: list[None] = []

    def start_unless_refused() -> Any:
        if len(refused) < _start_ups.MOST_KILLED - 1:
            refused.append(None)
            raise OSError(errno.EMFILE, "Too many open files")
        return start()

    monkeypatch.setattr(_start_ups, "_LONGEST_PAUSE", 0.01)
    monkeypatch.setattr(crew, "start", start_unless_refused)
    with pytest.raises(WorkerCrashed):
        pool.submit(os._exit, 3).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(refused) == _start_ups.MOST_KILLED - 1


@pytest.mark.parametrize("step", ["look_after_crew", "bury", "is_over", "break_down"])
def test_an_error_that_stays_breaks_the_pool_and_everything_ends(
    pool: TaskPool,
    step: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    reported: list[BaseException | None],
) -> None:
    engine = pool._engine
    gate = tmp_path / "never"
    handles = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(3)]
    wait_until(lambda: handles[0].worker_pid, "the first one runs")
    worker = handles[0].worker_pid
    assert worker is not None
    if step == "break_down":
        monkeypatch.setattr(engine, "look_after_crew", failing(float("inf"), engine.look_after_crew))
    monkeypatch.setattr(engine, step, failing(float("inf"), getattr(engine, step)))
    if step == "bury":
        os.kill(worker, signal.SIGKILL)
    else:
        engine.supervisor.poke()
    for handle in handles:
        error = handle.exception(PATIENCE)
        assert isinstance(error, PoolBroken)
        assert "out of means" in str(error) or step == "break_down"
    with pytest.raises(PoolBroken):
        pool.submit(tasks.square, 1)
    assert pool.join(PATIENCE)
    # Its exit code has been taken: nothing of it is left, not even a zombie.
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert reported


def test_a_worker_that_could_not_be_killed_is_killed_later(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """The kill looks for descendants, which needs a descriptor. It was not tried again."""
    monkeypatch.setattr(families, "kill_families", failing(3, families.kill_families))
    handle = pool.with_options(timeout=0.1).submit(tasks.hold_out)
    with pytest.raises(TaskTimeout):
        handle.result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(reported) == 1


def test_a_signal_that_is_not_allowed_is_no_reason_to_stop_looking(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """A task may have changed its user."""
    send = signalling.send_signal

    def refuse(process: Any, signum: int) -> bool:
        if signum != signal.SIGKILL:
            raise PermissionError(signum)
        return send(process, signum)

    monkeypatch.setattr(signalling, "send_signal", refuse)
    # None comes, however long one waits.
    monkeypatch.setattr(_insight, "_STACKS_SECONDS", 0.1)
    monkeypatch.setattr(families, "_STOPPING_PATIENCE_S", 0.1)
    assert set(pool.stacks().values()) == {""}
    with pytest.raises(TaskTimeout):
        pool.with_options(timeout=0.1).submit(time.sleep, 1000).result(PATIENCE)
    assert not reported


def test_a_worker_whose_end_is_not_told_is_buried_all_the_same(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Its process cannot be closed: that raises for one that passes for running."""
    lane = next(iter(pool._engine.dispatcher.lanes.values()))
    process = lane.process
    assert process is not None
    with monkeypatch.context() as patch:
        patch.setattr(type(process), "exitcode", None)
        patch.setattr(type(process), "join", lambda *_args: None)
        patch.setattr(type(process), "close", failing(float("inf"), process.close))
        with pytest.raises(WorkerCrashed):
            pool.submit(tasks.kill_myself).result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert not reported
    process.join()


def test_a_machine_without_temporary_directory(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", failing(float("inf"), str))
    lane = next(iter(pool._engine.dispatcher.lanes.values()))
    assert lane.identity is not None
    assert list(remains._left_by(lane.identity)) == []
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert not reported


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known who is stopped")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_what_a_stopped_worker_has_not_begun_goes_to_others(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_limits, "_LOOK_AROUND", 0.05)
    with TaskPool(2, context="fork") as pool:

        def workers() -> list[int]:
            return pool.map(tasks.pid_of_worker_after, [0.1, 0.1], chunksize=1)

        pids = workers()
        while len(set(pids)) < 2:  # the second one is still coming up
            pids = workers()
        stopped, other = pids
        last = pool.submit(time.sleep, 0.5) if busy else None
        os.kill(stopped, signal.SIGSTOP)
        try:
            wait_until(lambda: is_stopped(stopped), "it is stopped")
            handles = [pool.submit(os.getpid) for _ in range(20)]
            assert {handle.result(PATIENCE) for handle in handles} == {other}
            # It is left alone as long as it is stopped.
            assert pool.submit(os.getpid).result(PATIENCE) == other
        finally:
            os.kill(stopped, signal.SIGCONT)
        if last is not None:
            assert last.result(PATIENCE) is None
        wait_until(lambda: stopped in workers(), "at work again")


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known who is stopped")
def test_a_stopped_worker_that_is_alone_goes_on_at_once() -> None:
    with TaskPool(1, context="fork") as pool:
        pid = pool.apply(os.getpid)
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: is_stopped(pid), "it is stopped")
        handle = pool.submit(os.getpid)
        with pytest.raises(WaitTimeout):
            handle.result(0.3)
        os.kill(pid, signal.SIGCONT)
        assert handle.result(PATIENCE) == pid


@pytest.mark.parametrize("grace", [1e6, 1e12])
def test_a_long_grace_period(grace: float) -> None:
    """The system counts the milliseconds of a wait in 32 bits."""
    pool = TaskPool(1, context="fork", grace_period=grace)
    assert pool.apply(tasks.square, (2,)) == 4
    pool.close()
    assert pool.join(PATIENCE)


def test_a_long_wait_for_a_process() -> None:
    watcher = ExitWatcher()
    reader, writer = os.pipe()
    try:
        os.write(writer, b"!")
        assert watcher.wait(1e12, also=reader) == (set(), True)
        assert readiness.wait_readable(reader, 1e12)
    finally:
        watcher.close()
        os.close(reader)
        os.close(writer)


@pytest.mark.parametrize("struck", [True, False])
def test_kills_of_the_system_are_counted_in_the_control_group(
    monkeypatch: pytest.MonkeyPatch, struck: bool
) -> None:
    """They were counted for the whole machine: another container's made any killed worker one of them."""
    kills = 0
    monkeypatch.setattr(memory, "oom_kills", lambda: kills)
    with TaskPool(1, context="fork") as pool:
        pool.apply(tasks.square, (1,))
        kills += struck
        with pytest.raises(WorkerCrashed) as caught:
            pool.submit(tasks.kill_myself).result(PATIENCE)
    assert caught.value.likely_oom is struck


def test_a_worker_does_without_typing_extensions() -> None:
    """They take ten milliseconds of each start."""
    code = "import sys, mpkit.pool._worker.worker; print('typing_extensions' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- descriptors with big numbers ----------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    """All descriptors below 1024 are taken: `select.select` takes none of the others."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("no descriptor may have such a number here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 2048), hard))
    taken = [os.open(os.devnull, os.O_RDONLY)]
    try:
        while taken[-1] < 1024:
            taken.append(os.open(os.devnull, os.O_RDONLY))
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that has to wait for a core has a stack all the same."""
    monkeypatch.setattr(_limits, "_STACK_SECONDS", PATIENCE)
    monkeypatch.setattr(_insight, "_STACKS_SECONDS", PATIENCE)
    monkeypatch.setattr(_stacks, "_ANSWER_SECONDS", PATIENCE)


@pytest.mark.usefixtures("many_files", "patient")
def test_stacks_and_time_limits_with_many_open_files(reported: list[BaseException | None]) -> None:
    with TaskPool(1, context="fork", grace_period=0.2) as pool:
        pool.apply(tasks.square, (1,))
        (stack,) = pool.stacks().values()
        assert "worker.py" in stack
        with pytest.raises(TaskTimeout) as caught:
            pool.with_options(timeout=0.5).submit(time.sleep, 1000).result(PATIENCE)
        assert caught.value.stack
        assert not reported


@pytest.mark.usefixtures("many_files", "patient")
@pytest.mark.skipif(sys.platform != "linux", reason="from outside on Linux only")
def test_stacks_from_outside_with_many_open_files() -> None:
    with TaskPool(1, context="fork") as pool:
        pool.apply(tasks.square, (1,))
        (stack,) = _stacks.stacks_of(_stacks.workers_under(os.getpid()))
        assert "worker.py" in str(stack)


# -- stacks --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="another system has no such pipe, or no such word for it")
def test_programs_of_tasks_do_not_get_the_pipe_for_stacks() -> None:
    with TaskPool(1, context="forkserver") as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        (lane,) = pool._engine.dispatcher.lanes.values()
        assert not pool.submit(os.get_inheritable, lane.words[STACK_PIPE] - 1).result(PATIENCE)


def test_the_stack_of_a_worker_that_has_just_been_disposed_of(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pipe was looked up before the lock under which it is closed was taken."""
    engine = pool._engine
    lane = next(iter(engine.dispatcher.lanes.values()))
    waiting = threading.Event()
    run = lane.stack_lock.run

    def wait_first(*args: Any) -> Any:
        waiting.set()
        return run(*args)

    monkeypatch.setattr(lane, "stack_lock", _Lock(lane.stack_lock, wait_first))
    found: list[object] = []
    asking = threading.Thread(target=lambda: found.append(_stack_or_error(pool)))
    with lane.stack_lock:
        asking.start()
        assert waiting.wait(PATIENCE)
        pipe = lane.stack_pipe
        assert pipe is not None
        pipe.close()
        lane.stack_pipe = None
    asking.join(PATIENCE)
    assert found == [{lane.pid: ""}]


def write_slowly(pipe: int, begun: str, gate: str) -> None:
    """Lose the core in the middle of writing the stack."""

    def write(signum: int, _frame: object) -> None:
        # As it is in a handler in C, which that of `faulthandler` is.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signum})
        os.write(pipe, b"one half\n")
        time.sleep(0.2)
        os.write(pipe, b"the other half\n")
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signum})

    assert STACK_SIGNAL is not None
    faulthandler.unregister(STACK_SIGNAL)
    signal.signal(STACK_SIGNAL, write)
    tasks._touch_and_wait_for(begun, gate)


@pytest.mark.usefixtures("patient")
@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known who is writing")
@pytest.mark.parametrize("outside", [False, True])
def test_a_worker_that_loses_its_core_while_it_writes_its_stack_is_waited_for(
    pool: TaskPool, tmp_path: Path, outside: bool
) -> None:
    """What came after a pause of milliseconds was missing: on a busy machine in one stack of some hundred."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    (lane,) = pool._engine.dispatcher.lanes.values()
    handle = pool.submit(write_slowly, lane.words[STACK_PIPE] - 1, str(begun), str(gate))
    wait_until(begun.exists, "it has begun")
    (stack,) = _stacks.stacks_of(_stacks.workers_under(lane.pid)) if outside else list(pool.stacks().values())
    assert stack == "one half\nthe other half\n"
    gate.touch()
    assert handle.result(PATIENCE) is None


def flood(descriptor: int) -> None:
    room = select.poll()
    room.register(descriptor, select.POLLOUT)
    while True:
        room.poll()
        with contextlib.suppress(BlockingIOError):
            os.write(descriptor, bytes(1 << 16))


@pytest.mark.skipif(sys.platform != "linux", reason="another system has no such pipe, or no such word for it")
def test_a_task_that_never_stops_writing_into_the_pipe_for_stacks_is_stopped(pool: TaskPool) -> None:
    """Its stack was read for ever, by the thread that had to stop it."""
    (lane,) = pool._engine.dispatcher.lanes.values()
    pipe = lane.words[STACK_PIPE] - 1
    handle = pool.submit(flood, pipe)
    wait_until(handle.running, "it runs")
    (stack,) = _stacks.stacks_of(_stacks.workers_under(lane.pid))
    assert len(str(stack)) < 1 << 24
    handle.cancel()
    with pytest.raises(TaskTimeout):
        pool.with_options(timeout=0.1).submit(flood, pipe).result(PATIENCE)


def take_the_handler_away(begun: str, gate: str) -> str:
    assert STACK_SIGNAL is not None
    faulthandler.unregister(STACK_SIGNAL)
    tasks._touch_and_wait_for(begun, gate)
    return "alive"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere it is not known who has a handler")
def test_a_worker_without_a_handler_for_it_is_not_sent_the_signal(pool: TaskPool, tmp_path: Path) -> None:
    """It ended the worker; for the administrator also a program that had only taken the name of one."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    (lane,) = pool._engine.dispatcher.lanes.values()
    handle = pool.submit(take_the_handler_away, str(begun), str(gate))
    wait_until(begun.exists, "it has begun")
    assert _stacks.stacks_of(_stacks.workers_under(lane.pid)) == [""]
    assert list(pool.stacks().values()) == [""]
    gate.touch()
    assert handle.result(PATIENCE) == "alive"


class _Lock:
    """A lock that tells before it is waited for."""

    def __init__(self, lock: Any, run: Callable[..., Any]) -> None:
        self._lock = lock
        self.run = run

    def __enter__(self) -> None:
        self._lock.__enter__()

    def __exit__(self, *args: object) -> None:
        self._lock.__exit__(*args)


def _stack_or_error(pool: TaskPool) -> object:
    try:
        return pool.stacks()
    except Exception as error:
        return error


# -- reports -------------------------------------------------------------------------------------------------


def _raise(_args: object) -> None:
    raise RuntimeError("bad hook")


def test_a_hook_that_raises_ends_no_thread(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """What a call in the collector's thread raised is told to the application's own hook."""
    monkeypatch.setattr(threading, "excepthook", _raise)
    called = threading.Event()
    pool._engine.collector.call_back(lambda: 1 / 0)
    # Not by a callback of a task: if that has ended already, the caller's own thread calls it.
    pool._engine.collector.call_back(called.set)
    assert called.wait(PATIENCE)
    told = capfd.readouterr().err
    assert "ZeroDivisionError" in told
    assert "bad hook" in told


def test_a_report_without_any_means_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", _raise)
    monkeypatch.setattr(threading, "__excepthook__", _raise)
    done: list[int] = []

    def fail() -> None:
        raise ValueError

    _reports.attempt(fail)
    done.append(1)
    assert done == [1]


def test_what_a_task_left_behind_is_not_held_against_the_next_one(monkeypatch: pytest.MonkeyPatch) -> None:
    limit = 1 << 40
    first_goes, second_goes = LockedCounter(), LockedCounter()
    with TaskPool(1, context="fork", max_memory_bytes=limit) as pool:
        first = pool.submit(first_goes.wait_for, 1)
        wait_until(first.running, "the first one runs")
        second = pool.submit(second_goes.wait_for, 1)
        measured = 0

        def measure(_pid: int) -> int:
            """Much, while the first one ran; when the answer comes it is the second one that runs."""
            nonlocal measured
            measured += 1
            if measured > 1:
                if measured == 3:
                    second_goes.add()
                return 1
            first_goes.add()
            wait_until(second.running, "the second one runs")
            return 2 * limit

        monkeypatch.setattr(_limits, "rss_bytes", measure)
        assert first.result(PATIENCE)
        assert second.result(PATIENCE)
        assert pool.statistics().workers_started == 1


def test_a_closed_pool_replaces_only_workers_that_it_needs() -> None:
    gate = LockedCounter()
    with TaskPool(2, context="fork") as pool:
        dies = pool.submit(tasks.wait_and_die, gate)
        stays = pool.submit(gate.wait_for, 2)
        wait_until(lambda: dies.running() and stays.running(), "both run")
        pool.close()
        gate.add()
        assert isinstance(dies.exception(PATIENCE), WorkerCrashed)
        for _ in range(2):  # the thread has seen to the crew meanwhile
            seen = threading.Event()
            pool._engine.supervisor.request(seen.set)
            assert seen.wait(PATIENCE)
        gate.add()
        assert stays.result(PATIENCE)
        assert pool.join(PATIENCE)
        assert pool.statistics().workers_started == 2


def test_a_short_time_limit_is_forgotten_though_the_pool_always_has_tasks(tmp_path: Path) -> None:
    """The supervisor woke as often as that one task had needed it, as long as the pool was never empty."""
    gate = str(tmp_path / "gate")
    with TaskPool(2, context="fork") as pool:
        limits, dispatcher = pool._engine.limits, pool._engine.dispatcher

        def look_often() -> float:
            for _ in range(100):
                limits.look_at_running(time.monotonic())
            return dispatcher.shortest_timeout

        pool.submit(tasks.wait_for_file, gate)
        pool.with_options(timeout=PATIENCE).submit(tasks.nothing).result(PATIENCE)
        assert look_often() == math.inf
        pool.with_options(timeout=2 * PATIENCE).submit(tasks.wait_for_file, gate)
        pool.with_options(timeout=PATIENCE).submit(tasks.nothing)
        assert look_often() == PATIENCE, "one that waits has it"
        Path(gate).touch()


def test_who_stops_the_time_stops_no_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    """As freezegun does for tests: waiting never ended, and a worker had begun its task in the future."""
    monkeypatch.setattr(_limits, "_LOOK_AROUND", 0.02)
    asked = itertools.count()

    def stopped() -> int:
        # Whoever waits for the time to go on is let go in the end.
        return max(0, next(asked) - 10_000)

    for clock in ("monotonic", "monotonic_ns", "time"):
        monkeypatch.setattr(time, clock, stopped)
    with TaskPool(1, context="fork") as pool, BoundedQueue[int]() as queue:
        handle = pool.with_options(timeout=600).submit(queue.get)
        with pytest.raises(QueueEmpty):
            BoundedQueue[int]().get(timeout=0.01)
        with pytest.raises(WaitTimeout):
            handle.result(0.1)
        queue.put(7)
        assert handle.result(PATIENCE) == 7
    assert not stopped()
