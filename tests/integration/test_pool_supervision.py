"""The supervisor, the thread that looks after the workers: an error in it does not end it silently.

Either it goes on, or the pool breaks with an error that says why.
"""

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
from mpkit.pool._engine import start_ups as _start_ups
from mpkit.pool._engine import supervisor as _supervisor
from mpkit.pool._engine import threads as _threads
from mpkit.pool._protocol.channel import STACK_PIPE
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskPool]:
    monkeypatch.setattr(_supervisor, "_FIRST_PAUSE_SECONDS", 0.001)
    monkeypatch.setattr(_supervisor, "_LONGEST_PAUSE_SECONDS", 0.001)
    with TaskPool(1, context="fork", grace_period=0.2) as pool:
        pool.apply(tasks.square, (1,))
        yield pool
        pool.terminate()


@pytest.fixture
def reported(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    """The exceptions that are reported to `threading.excepthook`."""
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    return errors


def failing(times: float, original: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function like `original` whose first calls (as many as `times`) raise an error."""
    left = times

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal left
        if left:
            left -= 1
            raise OSError("out of means")
        return original(*args, **kwargs)

    return call


@pytest.mark.parametrize("step", ["look_after_crew", "bury"])
def test_a_passing_error_does_not_end_the_supervisor(
    pool: TaskPool, step: str, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Otherwise a single error would silently end the thread, and the pool would hang."""
    engine = pool._engine
    monkeypatch.setattr(engine, step, failing(3, getattr(engine, step)))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [str(error) for error in reported] == ["out of means"]


def test_a_death_whose_handling_fails_half_way_is_counted_once(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    crew = pool._engine.crew
    monkeypatch.setattr(crew, "note_death_of", failing(2, crew.note_death_of))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(reported) == 1
    assert pool.statistics().crashed == 1


def test_a_worker_that_cannot_be_watched_is_not_kept(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Otherwise its end would not be noticed, and the pool would not end either."""
    watcher = pool._engine.supervisor._watcher
    monkeypatch.setattr(watcher, "add", failing(1, watcher.add))
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert [str(error) for error in reported] == ["out of means"]
    pool.terminate()
    assert pool.join(PATIENCE)


def test_a_death_is_not_forgotten_if_reading_the_wake_up_pipe_fails(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Otherwise the task of the dead worker would never end."""
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


def test_an_outcome_is_told_even_if_stopping_the_next_task_fails(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """If the outcome that was fetched meanwhile were forgotten, its handle would stay pending for ever."""
    for _ in range(20):
        # The function must be known to be short, so that the next two tasks are sent together.
        pool.apply(time.sleep, (0.0,))
    # The collector is not woken for the first one, and no thread waits for it, so the supervisor fetches it.
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
    # As in a server that has just accepted too many connections. Nothing is wrong with the workers.
    crew = pool._engine.crew
    start = crew.start
    refused: list[None] = []

    def start_unless_refused(number: int) -> Any:
        if len(refused) < _start_ups.MOST_KILLED - 1:
            refused.append(None)
            raise OSError(errno.EMFILE, "Too many open files")
        return start(number)

    monkeypatch.setattr(_start_ups, "_LONGEST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(crew, "start", start_unless_refused)
    with pytest.raises(WorkerCrashed):
        pool.submit(os._exit, 3).result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(refused) == _start_ups.MOST_KILLED - 1


@pytest.mark.parametrize("step", ["look_after_crew", "bury", "is_over", "break_down"])
def test_a_lasting_error_breaks_the_pool_and_all_handles_end(
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
    # The worker has been reaped: there is not even a zombie.
    with pytest.raises(ProcessLookupError):
        os.kill(worker, 0)
    assert reported


def test_killing_a_worker_is_tried_again_after_an_error(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """Killing a worker may fail, because its descendants are looked up, which needs a descriptor."""
    monkeypatch.setattr(families, "kill_families", failing(3, families.kill_families))
    handle = pool.with_options(timeout=0.1).submit(tasks.hold_out)
    with pytest.raises(TaskTimeout):
        handle.result(PATIENCE)
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
    assert len(reported) == 1


def test_the_supervisor_goes_on_if_it_is_not_allowed_to_signal_a_worker(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """The worker may belong to another user by now, because a task has changed that."""
    send = signalling.send_signal

    def refuse(process: Any, signum: int) -> bool:
        if signum != signal.SIGKILL:
            raise PermissionError(signum)
        return send(process, signum)

    monkeypatch.setattr(signalling, "send_signal", refuse)
    # No stack will come, so do not wait long.
    monkeypatch.setattr(_insight, "_STACKS_SECONDS", 0.1)
    monkeypatch.setattr(families, "_STOPPING_PATIENCE_SECONDS", 0.1)
    assert set(pool.stacks().values()) == {""}
    with pytest.raises(TaskTimeout):
        pool.with_options(timeout=0.1).submit(time.sleep, 1000).result(PATIENCE)
    assert not reported


def test_a_dead_worker_without_an_exit_code_is_replaced(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    """`close` raises for a process without an exit code, as for one that runs. That must not matter."""
    lane = next(iter(pool._engine.dispatcher.lanes.values()))
    process = lane.process
    with monkeypatch.context() as patch:
        patch.setattr(type(process), "exitcode", None)
        patch.setattr(type(process), "join", lambda *_args: None)
        patch.setattr(type(process), "close", failing(float("inf"), process.close))
        with pytest.raises(WorkerCrashed):
            pool.submit(tasks.kill_myself).result(PATIENCE)
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert not reported
    process.join()


def test_worker_deaths_are_handled_without_a_temporary_directory(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, reported: list[BaseException | None]
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", failing(float("inf"), str))
    lane = next(iter(pool._engine.dispatcher.lanes.values()))
    assert lane.identity is not None
    assert list(remains._left_by(lane.identity)) == []
    with pytest.raises(WorkerCrashed):
        pool.submit(tasks.kill_myself).result(PATIENCE)
    assert not reported


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows that a process is stopped")
@pytest.mark.parametrize("busy", [False, True], ids=["idle", "busy"])
def test_tasks_that_a_stopped_worker_has_not_begun_go_to_others(
    busy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 0.05)
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
            # No task is sent to it as long as it is stopped.
            assert pool.submit(os.getpid).result(PATIENCE) == other
        finally:
            os.kill(stopped, signal.SIGCONT)
        if last is not None:
            assert last.result(PATIENCE) is None
        wait_until(lambda: stopped in workers(), "at work again")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows that a process is stopped")
def test_the_only_worker_gets_tasks_again_once_it_is_no_longer_stopped() -> None:
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
def test_a_grace_period_may_be_longer_than_the_system_can_wait(grace: float) -> None:
    """The system limits a wait to 32 bits of milliseconds."""
    pool = TaskPool(1, context="fork", grace_period=grace)
    assert pool.apply(tasks.square, (2,)) == 4
    pool.close()
    assert pool.join(PATIENCE)


def test_a_wait_for_a_process_may_be_longer_than_the_system_can_wait() -> None:
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
def test_a_killed_worker_counts_as_out_of_memory_only_if_the_system_counts_such_a_kill(
    monkeypatch: pytest.MonkeyPatch, struck: bool
) -> None:
    """The count is that of the program's control group, not that of the machine.

    Otherwise a kill in another container would make `likely_oom` true for any killed worker.
    """
    kills = 0
    monkeypatch.setattr(memory, "oom_kills", lambda: kills)
    with TaskPool(1, context="fork") as pool:
        pool.apply(tasks.square, (1,))
        kills += struck
        with pytest.raises(WorkerCrashed) as caught:
            pool.submit(tasks.kill_myself).result(PATIENCE)
    assert caught.value.likely_oom is struck


def test_workers_do_not_import_typing_extensions() -> None:
    """Importing it takes ten milliseconds at each start."""
    code = "import sys, mpkit.pool._worker.worker; print('typing_extensions' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


# -- descriptors with big numbers ----------------------------------------------------------------------------


@pytest.fixture
def many_files() -> Iterator[None]:
    """All descriptors below 1024 are taken. `select.select` does not accept higher ones."""
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 2048:
        pytest.skip("the limit of open files is too low for such descriptors")
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
    """Wait long enough for the stack of a worker that has to wait for a core."""
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
@pytest.mark.skipif(sys.platform != "linux", reason="stacks can be had from outside only on Linux")
def test_stacks_from_outside_with_many_open_files() -> None:
    with TaskPool(1, context="fork") as pool:
        pool.apply(tasks.square, (1,))
        (stack,) = _stacks.stacks_of(_stacks.workers_under(os.getpid()))
        assert "worker.py" in str(stack)


# -- stacks --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(sys.platform != "linux", reason="needs the pipe's number, which other systems may lack")
def test_programs_of_tasks_do_not_inherit_the_pipe_for_stacks() -> None:
    with TaskPool(1, context="forkserver") as pool:
        assert pool.submit(abs, -1).result(PATIENCE) == 1
        (lane,) = pool._engine.dispatcher.lanes.values()
        assert not pool.submit(os.get_inheritable, lane.words[STACK_PIPE] - 1).result(PATIENCE)


def test_asking_for_the_stack_of_a_worker_whose_pipe_is_just_being_closed(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pipe must be looked up under the lock under which it is closed. Else a closed one might be used."""
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
    """Write the stack as if the worker lost its core in the middle of it."""

    def write(signum: int, _frame: object) -> None:
        # The signal is blocked in a handler in C, as that of `faulthandler` is.
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
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows that a worker is still writing")
@pytest.mark.parametrize("outside", [False, True])
def test_a_stack_is_complete_even_if_its_worker_pauses_while_writing_it(
    pool: TaskPool, tmp_path: Path, outside: bool
) -> None:
    """Otherwise the rest of the stack is missing after a pause of milliseconds (common on a busy machine)."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="needs the pipe's number, which other systems may lack")
def test_a_task_that_never_stops_writing_into_the_pipe_for_stacks_is_stopped(pool: TaskPool) -> None:
    """The thread that has to stop it must not read its stack for ever."""
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux shows whether a process has a handler")
def test_the_stack_signal_is_not_sent_to_a_worker_without_a_handler_for_it(
    pool: TaskPool, tmp_path: Path
) -> None:
    """The signal would end the worker, or, sent by root, any program that only pretends to be one."""
    begun, gate = tmp_path / "begun", tmp_path / "gate"
    (lane,) = pool._engine.dispatcher.lanes.values()
    handle = pool.submit(take_the_handler_away, str(begun), str(gate))
    wait_until(begun.exists, "it has begun")
    assert _stacks.stacks_of(_stacks.workers_under(lane.pid)) == [""]
    assert list(pool.stacks().values()) == [""]
    gate.touch()
    assert handle.result(PATIENCE) == "alive"


class _Lock:
    """A lock whose `run` is replaced, so that the test learns when a thread is about to wait for it."""

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


def test_an_excepthook_that_raises_ends_no_thread(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """An exception of such a call is passed to the application's hook, which may fail itself."""
    monkeypatch.setattr(threading, "excepthook", _raise)
    called = threading.Event()
    pool._engine.collector.call_back(lambda: 1 / 0)
    # Not as the callback of a task: if the task has already ended, the thread that adds it may call it.
    pool._engine.collector.call_back(called.set)
    assert called.wait(PATIENCE)
    told = capfd.readouterr().err
    assert "ZeroDivisionError" in told
    assert "bad hook" in told


def test_a_report_raises_nothing_even_if_all_hooks_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", _raise)
    monkeypatch.setattr(threading, "__excepthook__", _raise)
    done: list[int] = []

    def fail() -> None:
        raise ValueError

    _threads.attempt(fail)
    done.append(1)
    assert done == [1]


def test_memory_that_was_measured_during_a_task_is_not_held_against_the_next_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limit = 1 << 40
    first_goes, second_goes = LockedCounter(), LockedCounter()
    with TaskPool(1, context="fork", max_memory_bytes=limit) as pool:
        first = pool.submit(first_goes.wait_for, 1)
        wait_until(first.running, "the first one runs")
        second = pool.submit(second_goes.wait_for, 1)
        measured = 0

        def measure(_pid: int) -> int:
            """Return too much for the first task. By the time it is returned, the second one is running."""
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
        for _ in range(2):  # let the supervisor look after the workers meanwhile
            seen = threading.Event()
            pool._engine.supervisor.request(seen.set)
            assert seen.wait(PATIENCE)
        gate.add()
        assert stays.result(PATIENCE)
        assert pool.join(PATIENCE)
        assert pool.statistics().workers_started == 2


def test_a_short_time_limit_is_forgotten_even_if_the_pool_is_never_empty(tmp_path: Path) -> None:
    """Otherwise the supervisor would go on waking up as often as that one task needed it."""
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
        assert look_often() == PATIENCE, "a queued task has this limit"
        Path(gate).touch()


def test_timeouts_work_if_the_programs_clocks_are_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """As freezegun does for tests. mpkit must not use the patched functions of `time`.

    Otherwise waits would never end, and a worker would seem to have begun its task in the future.
    """
    monkeypatch.setattr(_limits, "_LOOK_AROUND_SECONDS", 0.02)
    asked = itertools.count()

    def stopped() -> int:
        # The time goes on after many calls, so that code that wrongly waits for it ends.
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
