"""`WorkerProcess` keeps its contract under every start method."""

from __future__ import annotations

import errno
import gc
import multiprocessing
import os
import pickle
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import numpy as np
import psutil
import pytest

from mpkit import ProcessState, TaskPool, WorkerProcess, compat
from mpkit._platform.processes import families, identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import child_process
from mpkit.errors import (
    ClosedError,
    ProcessGone,
    SerializationError,
    WaitTimeout,
    WorkerCrashed,
    WorkerMemoryExceeded,
)
from mpkit.process import memory_watch
from tests.conftest import own_or_of_the_server
from tests.contract import process_targets as targets
from tests.helpers.processes import gone, run_python, wait_gone
from tests.helpers.stepping import STARTING, interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE, wait_until

posix = pytest.mark.skipif(sys.platform == "win32", reason="signals")

#: The type of the fixture `start`.
Start = Callable[..., tuple["WorkerProcess[Any]", Any]]


@pytest.fixture
def start(start_method: str, request: pytest.FixtureRequest) -> Start:
    """A function that starts a process and waits until its target has sent something.

    The target gets a connection as its first argument. The function returns the process and what was sent;
    the process is stopped at the end of the test.
    """

    def start(target: Callable[..., object], *args: object, **options: Any) -> tuple[WorkerProcess[Any], Any]:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process: WorkerProcess[Any] = WorkerProcess(
            target=target, args=(theirs, *args), start_method=start_method, **options
        )
        process.start()
        theirs.close()
        request.addfinalizer(lambda: None if child_process.is_closed(process) else process.stop(0))
        assert ours.poll(PATIENCE)
        said = ours.recv()
        ours.close()
        return process, said

    return start


def run(start_method: str, target: Callable[..., Any], *args: object, **options: Any) -> WorkerProcess[Any]:
    """Start a process and wait for its end."""
    process: WorkerProcess[Any] = WorkerProcess(
        target=target, args=args, start_method=start_method, **options
    )
    process.start()
    process.join(PATIENCE)
    assert process.exitcode is not None
    return process


# --- results and exceptions ---------------------------------------------------------------------------------


def test_a_result(start_method: str) -> None:
    process = WorkerProcess(target=targets.multiply, args=[3], kwargs={"y": 4}, start_method=start_method)
    process.start()
    assert process.result(PATIENCE) == 12
    assert process.result(0) == 12
    assert process.exception() is None
    assert process.exitcode == 0
    assert not process.is_alive()


def test_no_target_and_no_result(start_method: str) -> None:
    assert run(start_method, None).result() is None  # type: ignore[arg-type]


def test_an_exception_arrives_as_itself_and_is_printed(
    start_method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    process = run(start_method, targets.fail, "on purpose", name="loser")
    with pytest.raises(LookupError, match="on purpose") as caught:
        process.result()
    assert "in fail" in str(caught.value.__cause__)
    error = process.exception()
    assert isinstance(error, LookupError)
    assert process.exitcode == 1
    if start_method != "forkserver":  # there it goes to the error output of the server
        printed = capfd.readouterr().err
        assert "Process loser:" in printed
        assert "LookupError: on purpose" in printed


@pytest.mark.parametrize("code, exitcode", [(None, 0), (0, 0), (7, 7), ("text", 1)])
@own_or_of_the_server
def test_sys_exit(start_method: str, code: object, exitcode: int) -> None:
    process = run(start_method, targets.exit_with, code)
    assert process.exitcode == exitcode
    error = process.exception()
    assert isinstance(error, SystemExit)
    assert error.code == code


def test_a_large_result_does_not_block_join_and_outlives_the_process(start_method: str) -> None:
    process = run(start_method, targets.many_bytes, 30_000_000)
    assert process.exitcode == 0
    assert process.result() == bytes(30_000_000)


def test_arrays_are_private_and_outlive_the_handle(start_method: str) -> None:
    process = run(start_method, targets.big_arrays)
    result = process.result()
    process.close()
    del process
    gc.collect()
    assert result["ones"].sum() == 200_000
    assert (result["range"] == np.arange(300_001)).all()
    assert result["range"].dtype == "i4"
    result["ones"][:] = 5
    assert result["ones"].sum() == 1_000_000
    assert result["ones"].ctypes.data % 64 == 0


def test_a_result_that_cannot_be_pickled_is_an_error_of_result_alone(start_method: str) -> None:
    process = run(start_method, targets.unpicklable)
    assert process.exitcode == 0
    with pytest.raises(SerializationError, match="lock"):
        process.result()


def test_a_result_that_cannot_be_unpickled(start_method: str) -> None:
    process = run(start_method, targets.not_back)
    assert process.exitcode == 0
    with pytest.raises(SerializationError, match="cannot unpickle"):
        process.result()


@own_or_of_the_server
def test_a_thread_does_not_wait_while_another_one_unpickles_the_result(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = run(start_method, targets.telling)
    first, go_on = threading.Event(), threading.Event()
    results: list[object] = []

    def told() -> None:
        if not first.is_set():
            first.set()
            assert go_on.wait(PATIENCE)

    monkeypatch.setattr(targets.Telling, "told", staticmethod(told))
    slow = threading.Thread(target=lambda: results.append(process.result()))
    slow.start()
    assert first.wait(PATIENCE)
    # In a thread, so that the test fails instead of hanging if this call waits, too.
    quick = threading.Thread(target=lambda: results.append(process.result(0)))
    quick.start()
    quick.join(PATIENCE / 2)
    waited = quick.is_alive()
    go_on.set()
    quick.join(PATIENCE)
    slow.join(PATIENCE)
    assert not waited
    # Both unpickled the result, but both returned the same object.
    assert len(results) == 2
    assert results[0] is results[1] is process.result()


@own_or_of_the_server
def test_a_result_may_ask_for_itself_while_it_is_unpickled(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = run(start_method, targets.telling)
    inner: list[object] = []

    def told() -> None:
        if not inner:
            inner.append(None)
            inner.append(process.result(0))

    monkeypatch.setattr(targets.Telling, "told", staticmethod(told))
    outer: list[object] = []
    asking = threading.Thread(target=lambda: outer.append(process.result()), daemon=True)
    asking.start()
    asking.join(PATIENCE / 2)
    assert not asking.is_alive()
    assert inner[1] is outer[0] is process.result()


def test_a_subclass(start_method: str) -> None:
    process = targets.Adder(2, 3, start_method=start_method, name="adder")
    with process:
        assert process.result(PATIENCE) == 5
    assert process.name == "adder"


def test_type_arguments_are_not_pickled(start_method: str) -> None:
    """They may be types that cannot be pickled, such as a local class or a type parameter of a function."""

    class Local: ...

    multiply: Any = targets.multiply
    with WorkerProcess[Local](target=multiply, args=(2, 3), start_method=start_method) as process:
        assert process.result(PATIENCE) == cast("Any", 6)
    assert getattr(process, "__orig_class__").__args__ == (Local,)  # noqa: B009  not what checkers know


def test_a_subclass_may_have_attributes_of_any_name(start_method: str) -> None:
    process = targets.Worn(start_method)
    assert vars(process)["state"] == getattr(process, "state") == "my state"  # noqa: B009  checkers see the property
    ask: Any = WorkerProcess
    with process:
        assert ask.result(process, PATIENCE) == " ".join(f"my {name}" for name in process.NAMES)
    assert ask.exception(process) is None
    assert ask.state.__get__(process) is ProcessState.EXITED
    with targets.Worn(start_method) as process:
        ask.stop(process, 0)
    assert process.exitcode is not None
    assert "my" not in repr(process)


@pytest.mark.parametrize("kind", [WorkerProcess, compat.Process])
def test_private_names_begin_so_that_no_subclass_chooses_the_same(kind: type) -> None:
    ours = {name for base in kind.__mro__ if base.__module__.startswith("mpkit") for name in vars(base)}
    # `_start_method` is a name of multiprocessing: each of its process classes has it.
    theirs = {*dir(BaseProcess), *vars(multiprocessing.Process()), "_start_method"}
    private = {name for name in {*ours, *vars(kind())} - theirs if name.startswith("_")}
    # Names of the language, and of `Generic` and the like, begin with two underscores.
    assert {name for name in private if not name.startswith(("_mpkit", "__"))} == set()


def test_it_is_a_process_of_multiprocessing(start_method: str) -> None:
    process = WorkerProcess(target=targets.who_am_i, start_method=start_method, name="me")
    assert isinstance(process, BaseProcess)
    assert process not in multiprocessing.active_children()
    process.start()
    assert process in multiprocessing.active_children() or process.exitcode is not None
    kind, name, pid, really, parent, text, alive = process.result(PATIENCE)
    assert (kind, name, pid, parent) == ("WorkerProcess", "me", really, os.getpid())
    assert pid == process.pid == process.ident
    assert text == f"<WorkerProcess name='me' pid={pid} running>"
    assert alive
    assert process not in multiprocessing.active_children()


def test_processes_within_processes(start_method: str) -> None:
    pids = run(start_method, targets.nest, 2).result()
    assert len(set(pids)) == 3


def test_shared_things_of_multiprocessing_travel_in_args(start_method: str) -> None:
    context = multiprocessing.get_context(start_method)
    lock, queue, value = context.Lock(), context.SimpleQueue(), context.Value("i", 1)
    process = run(start_method, targets.use_shared, lock, queue, value)
    assert process.exitcode == 0
    assert queue.get() == "done"
    assert value.value == 2
    queue.close()


def test_starting_a_process_does_not_fix_the_default_start_method(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    run(start_method, targets.multiply, 1)
    assert multiprocessing.get_start_method(allow_none=True) is None


# --- deaths -------------------------------------------------------------------------------------------------


@posix
def test_killed(start_method: str) -> None:
    process = run(start_method, targets.kill_itself, signal.SIGKILL)
    assert process.exitcode == -signal.SIGKILL
    with pytest.raises(WorkerCrashed, match="SIGKILL") as caught:
        process.result()
    error = caught.value
    assert (error.pid, error.exitcode, error.signal) == (process.pid, -9, "SIGKILL")
    assert error.stack is None
    assert not error.likely_oom
    assert process.exception() is error


@posix
def test_a_crash_tells_where(start_method: str) -> None:
    process = run(start_method, targets.segfault_here)
    error = process.exception()
    assert isinstance(error, WorkerCrashed)
    assert error.signal == "SIGSEGV"
    assert error.stack is not None
    assert "in segfault_here" in error.stack


@pytest.mark.parametrize("code", [0, 3])
def test_os_exit(start_method: str, code: int) -> None:
    process = run(start_method, targets.exit_at_once, code)
    assert process.exitcode == code
    error = process.exception()
    assert isinstance(error, WorkerCrashed)
    assert (error.exitcode, error.signal) == (code, None)
    assert "os._exit" in str(error)


def test_the_memory_limit(start: Start) -> None:
    process, pid = start(targets.grow, max_memory_bytes=200_000_000)
    error = process.exception(PATIENCE)
    assert isinstance(error, WorkerMemoryExceeded)
    assert (error.pid, error.limit) == (pid, 200_000_000)
    assert error.rss_bytes is not None
    assert error.rss_bytes > 200_000_000


@own_or_of_the_server
def test_a_memory_limit_that_is_kept(start_method: str) -> None:
    process = run(start_method, targets.multiply, 5, max_memory_bytes=2_000_000_000)
    assert process.result() == 5
    wait_until(
        lambda: "mpkit-memory-watch" not in {thread.name for thread in threading.enumerate()},
        "the sampler has nothing left to do",
    )


# --- waiting ------------------------------------------------------------------------------------------------


@own_or_of_the_server
def test_time_limits(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    process.join(0)
    process.join(timeout=0.01)
    assert process.exitcode is None
    for wait in (process.result, process.exception):
        with pytest.raises(WaitTimeout, match=r"within 0.01 s"):
            wait(0.01)
        with pytest.raises(WaitTimeout):
            wait(timeout=0)
    assert process.is_alive()


@pytest.mark.skipif(
    not hasattr(os, "pidfd_open"), reason="without pidfd the grandchild keeps the sentinel open"
)
@own_or_of_the_server
def test_the_sentinel_is_ready_though_a_forked_grandchild_lives(start: Start) -> None:
    process, grandchild = start(targets.fork_and_return)
    assert connection.wait([process.sentinel], PATIENCE) == [process.sentinel]
    process.join(PATIENCE)
    assert process.exitcode == 0
    assert not gone(grandchild)
    psutil.Process(grandchild).kill()
    wait_gone(grandchild)


@pytest.mark.skipif(not hasattr(os, "pidfd_open"), reason="the sentinel is a pipe, opened at the start")
def test_an_interrupt_while_the_sentinel_is_opened_leaves_nothing_open(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """For a child of the fork server, the sentinel is opened only when it is asked for."""
    process = WorkerProcess(target=time.sleep, args=(10 * PATIENCE,), start_method="forkserver")
    process.start()
    request.addfinalizer(lambda: process.stop(0))
    really_open = os.pidfd_open
    opened: list[int] = []

    def open_and_interrupt(pid: int) -> int:
        opened.append(really_open(pid))
        signal.raise_signal(signal.SIGINT)
        return opened[-1]

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(os, "pidfd_open", open_and_interrupt)
        process.sentinel  # noqa: B018
    assert process.sentinel == opened[0]
    assert len(opened) == 1


@own_or_of_the_server
def test_threads_that_start_and_join_at_once(start_method: str) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        for i in range(3):
            process = WorkerProcess(
                target=targets.exit_with, args=(10 * number + i,), start_method=start_method
            )
            process.start()
            process.join()
            if process.exitcode != 10 * number + i or process.is_alive():
                wrong.append(process)
            process.close()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@own_or_of_the_server
def test_threads_that_wait_for_one_process(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    codes: list[int | None] = []

    def wait() -> None:
        process.join()
        codes.append(process.exitcode)

    threads = [threading.Thread(target=wait) for _ in range(5)]
    for thread in threads:
        thread.start()
    process.kill()
    for thread in threads:
        thread.join()
    assert codes == [-9] * 5


@posix
def test_a_child_that_other_code_has_reaped(start: Start, start_method: str) -> None:
    if start_method == "forkserver":
        pytest.skip("the fork server's child, which this process cannot reap")
    process, pid = start(targets.report_and_wait)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    process.join(PATIENCE)
    assert process.exitcode == 255
    assert not process.is_alive()
    error = process.exception()
    assert isinstance(error, WorkerCrashed)
    assert "SIGCHLD" in str(error)


@own_or_of_the_server
def test_very_long_time_limits(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    for seconds in (1e8, 1e300):
        timer = threading.Timer(0.05, process.kill)
        timer.start()
        process.join(seconds)
        timer.join()
        assert process.exitcode == -9
        process, _ = start(targets.report_and_wait)
    process.stop(0)


# --- ending -------------------------------------------------------------------------------------------------


@posix
def test_interrupt_terminate_kill(start: Start) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)
    process.interrupt()
    assert process.result(PATIENCE) == "interrupted"
    process.interrupt()  # has no effect: the process has ended
    process, _ = start(targets.report_and_wait)
    process.terminate()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGTERM
    process, _ = start(targets.resist, signal.SIGTERM, signal.SIGINT)
    process.kill()
    process.join(PATIENCE)
    assert process.exitcode == -signal.SIGKILL


@posix
def test_an_exit_code_of_one_that_was_stopped_is_not_put_down_to_the_target(start: Start) -> None:
    process, _ = start(targets.exit_when_terminated, 3)
    process.terminate()
    with pytest.raises(WorkerCrashed, match=r"exit code 3 before its target had returned: it was stopped \("):
        process.result(PATIENCE)


def test_a_process_looks_at_itself(start_method: str) -> None:
    process = targets.LooksAtItself(start_method=start_method)
    with process:
        pass
    assert process.result() == ("running", process.pid)


def test_one_that_is_closed_in_its_block(start_method: str) -> None:
    with WorkerProcess.call(divmod, 7, 2) as process:
        process.join(PATIENCE)
        process.close()
    with pytest.raises(ClosedError):
        process.result()


@posix
def test_stop_interrupts_first(start: Start) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)
    assert process.stop(PATIENCE) == 0
    assert process.result() == "interrupted"
    assert process.stop() == 0


@posix
@own_or_of_the_server
def test_stop_works_without_the_report_of_the_child(start: Start) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)
    # As if this program had closed all of its descriptors, as one does that becomes a daemon.
    os.close(process._mpkit_own_ties().report._file.fileno())
    assert process.stop(PATIENCE) == 0


@own_or_of_the_server
def test_stop_works_without_the_identity_of_the_child(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)
    monkeypatch.setattr(child_process, "identity_of", lambda _process: None)
    assert process.stop() == -signal.SIGKILL


def test_stop_does_not_wait_for_a_target_that_has_not_begun(start_method: str) -> None:
    process = WorkerProcess(target=time.sleep, args=(600,), start_method=start_method)
    process.start()
    began = time.monotonic()
    # Whether the target has begun by now or not, the child ends long before the grace period is over.
    assert process.stop(grace_period=1.5 * PATIENCE) != 0
    assert time.monotonic() - began < PATIENCE


@own_or_of_the_server
def test_stop_terminates_next(start: Start) -> None:
    process, _ = start(targets.resist, signal.SIGINT)
    assert process.stop(0.2) == -signal.SIGTERM


@posix
@own_or_of_the_server
def test_stop_kills_last(start: Start) -> None:
    process, _ = start(targets.resist, signal.SIGINT, signal.SIGTERM)
    assert process.stop(0.1) == -signal.SIGKILL
    error = process.exception()
    assert isinstance(error, WorkerCrashed)
    assert not error.likely_oom


@posix
def test_a_child_stopped_before_its_target_began_is_not_reported_as_failed() -> None:
    process = WorkerProcess(target=print, args=(targets.TakesForEverToArrive(),), start_method="spawn")
    process.start()
    process.stop(PATIENCE)
    error = process.exception()
    assert isinstance(error, WorkerCrashed)
    assert "main module" not in str(error)
    assert "was stopped" in str(error) or error.signal in ("SIGINT", "SIGKILL")


@posix
@pytest.mark.parametrize("how", ["returns", "raises", "exits"])
@own_or_of_the_server
def test_the_outcome_of_a_fork_that_the_target_makes_is_not_the_result(start_method: str, how: str) -> None:
    with WorkerProcess(target=targets.fork_a_helper, args=(how,), start_method=start_method) as process:
        assert process.result(PATIENCE) == 42
    with WorkerProcess(
        target=targets.fork_a_helper_and_die, args=(how,), start_method=start_method
    ) as process:
        error = process.exception(PATIENCE)
        assert isinstance(error, WorkerCrashed)
        assert error.signal == "SIGKILL"


@posix
def test_the_child_does_not_write_its_report_into_another_file(start_method: str, tmp_path: Path) -> None:
    path = tmp_path / "precious"
    path.write_text("data")
    with WorkerProcess(
        target=targets.close_what_is_not_mine, args=(str(path),), start_method=start_method
    ) as process:
        assert isinstance(process.exception(PATIENCE), WorkerCrashed)
    assert process.exitcode == 1
    assert path.read_text() == "data"


@posix
@own_or_of_the_server
def test_stop_continues_a_suspended_child_so_that_it_can_clean_up(start: Start) -> None:
    process, pid = start(targets.report_and_wait)
    os.kill(pid, signal.SIGSTOP)
    assert process.stop(PATIENCE) == 1
    assert isinstance(process.exception(), KeyboardInterrupt)


@posix
@own_or_of_the_server
def test_stop_misses_no_program_that_is_just_being_started(start: Start, tmp_path: Path) -> None:
    for number in range(3):
        started = tmp_path / str(number)
        started.touch()
        process, _ = start(targets.start_programs_without_end, started)
        while len(started.read_text().split()) < 5:
            assert process.is_alive()
            time.sleep(0.01)
        # A short grace period: programs started after the interrupt are ended by the next step, SIGTERM.
        process.stop(1.0)
        # (The last program may not have been written down. The check for leftovers would find it.)
        assert all(gone(int(pid)) for pid in started.read_text().split())


@posix
@own_or_of_the_server
def test_stop_ends_what_is_started_in_the_last_moment(start: Start, tmp_path: Path) -> None:
    """A child starts a program when it is interrupted, and ends before the parent looks at it again. Since
    the child reports what it leaves behind, `stop` ends that program, too.
    """
    for number in range(3):
        started = tmp_path / str(number)
        grace_period = 0.2
        while not started.exists() or not started.read_text():
            process, _ = start(targets.start_a_program_when_interrupted, started)
            # The program does not end by itself, so this takes the whole grace period. On a busy machine that
            # may be over before the child has written down the program: then try again with a longer one.
            process.stop(grace_period)
            grace_period *= 4
        assert gone(int(started.read_text()))


@posix
@pytest.mark.parametrize("ignored", [(), (signal.SIGINT,), (signal.SIGINT, signal.SIGTERM)], ids=str)
@own_or_of_the_server
def test_stop_ends_the_whole_family(start: Start, ignored: tuple[int, ...]) -> None:
    process, pids = start(targets.have_a_family, *ignored)
    # A process that does not end within a short grace period is ended by the next step.
    process.stop(0.1 if ignored else PATIENCE)
    assert all(gone(pid) for pid in pids)


@posix
def test_leaving_a_with_block(start_method: str) -> None:
    with WorkerProcess(target=targets.multiply, args=(2,), start_method=start_method) as process:
        pass
    assert process.exitcode == 0
    ours, theirs = multiprocessing.Pipe()
    raised = LookupError()
    with pytest.raises(LookupError) as caught:
        with WorkerProcess(
            target=targets.leave_quietly_when_interrupted, args=(theirs,), start_method=start_method
        ) as other:
            ours.recv()
            raise raised
    assert caught.value is raised
    assert other.result() == "interrupted"
    ours.close()
    theirs.close()


@posix
@own_or_of_the_server
def test_a_second_interrupt_while_leaving_a_with_block_kills_at_once(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = start(targets.resist, signal.SIGINT, signal.SIGTERM)
    wait = families.wait_families_gone
    interrupts = iter([KeyboardInterrupt("second")])

    def interrupted(roots: Iterable[ProcessIdentity], timeout: float | None) -> list[ProcessIdentity]:
        if interrupt := next(interrupts, None):
            raise interrupt
        return wait(roots, timeout)

    monkeypatch.setattr(families, "wait_families_gone", interrupted)
    with pytest.raises(KeyboardInterrupt, match="second"):
        with process:
            raise KeyboardInterrupt("first")
    assert process.exitcode == -signal.SIGKILL


@posix
@own_or_of_the_server
def test_an_interrupt_while_a_with_block_waits_stops_the_process(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)

    def interrupted() -> None:
        process.interrupt()  # the terminal sends Ctrl-C to both processes
        raise KeyboardInterrupt

    monkeypatch.setattr(process, "join", interrupted)
    with pytest.raises(KeyboardInterrupt), process:
        pass
    monkeypatch.undo()
    assert process.result() == "interrupted"


@own_or_of_the_server
def test_any_error_while_a_with_block_waits_stops_the_process(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = start(targets.resist)

    def interrupted() -> None:
        raise TimeoutError("of a signal handler")

    monkeypatch.setattr(process, "join", interrupted)
    with pytest.raises(TimeoutError), process:
        pass
    assert process.exitcode is not None


def interrupt_starts(start_method: str, *, every: int = 1, times: int = 1) -> int:
    """Start processes, each interrupted at a later step than the one before, and check that nothing is left.

    Returns how many of these starts failed.
    """
    # The first process makes sure that guardian, fork server and resource tracker run.
    first = WorkerProcess(target=time.sleep, args=(600,), start_method=start_method)
    first.start()
    first.stop(0)
    first.close()
    gc.collect()
    before = len(os.listdir("/dev/fd"))
    children = psutil.Process().children()
    taken_back = 0
    for step in range(0, 10_000, every):
        process = WorkerProcess(target=time.sleep, args=(600,), start_method=start_method)
        reached = interrupt_at(step, process.start, traced=STARTING, times=times)
        if child_process.is_started(process):
            process.stop(0)
            process.close()
        else:
            assert process.state is ProcessState.NEW
            taken_back += 1
        if not reached:
            break
    else:
        pytest.fail("a start has more than 10,000 steps")
    assert len(os.listdir("/dev/fd")) == before
    if start_method != "forkserver":  # there they are children of the server
        assert psutil.Process().children() == children
    return taken_back


def test_only_one_of_two_threads_can_start_a_process(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process: WorkerProcess[int] = WorkerProcess(target=os.getpid, start_method=start_method)
    begun, refused = threading.Event(), threading.Event()
    prepare = process._mpkit.prepare

    def prepare_late() -> Any:
        begun.set()
        assert refused.wait(PATIENCE)
        return prepare()

    monkeypatch.setattr(process._mpkit, "prepare", prepare_late)
    thread = threading.Thread(target=process.start)
    thread.start()
    assert begun.wait(PATIENCE)
    with pytest.raises(AssertionError, match="twice"):
        process.start()
    refused.set()
    thread.join(PATIENCE)
    with pytest.raises(AssertionError, match="twice"):
        process.start()
    assert process.result(PATIENCE) == process.pid


def test_another_thread_may_close_a_process_as_soon_as_it_has_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    join = child_process.ChildProcess.join

    def join_and_be_closed(process: BaseProcess, timeout: float | None = None) -> None:
        join(process, timeout)
        process.close()

    monkeypatch.setattr(child_process.ChildProcess, "join", join_and_be_closed)
    for ask, expected in (("join", None), ("stop", 0)):
        process: WorkerProcess[int] = WorkerProcess(target=os.getpid)
        process.start()
        connection.wait([process.sentinel])
        assert getattr(process, ask)() == expected
    process = WorkerProcess(target=os.getpid)
    process.start()
    with pytest.raises(ClosedError):
        process.result()


@own_or_of_the_server
def test_join_times_out_although_its_descriptor_refers_to_another_file_now(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, _ = start(targets.leave_quietly_when_interrupted)
    popen = vars(process)["_popen"]
    looks: list[object] = []

    def is_ready(timeout: float | None) -> bool:
        looks.append(timeout)
        return True  # a regular file is always readable

    monkeypatch.setattr(popen, "_wait_for_end", is_ready)
    began = time.monotonic()
    process.join(0.3)
    assert process.is_alive()
    assert 0.3 <= time.monotonic() - began < PATIENCE
    assert len(looks) < 30


def test_a_subclass_that_does_not_call_its_base_is_told_so() -> None:
    class Careless(WorkerProcess[None]):
        def __init__(self) -> None:
            self.number = 1

    with pytest.raises(AssertionError, match=r"super\(\).__init__\(\) in Careless.__init__"):
        Careless().start()


@posix
@needs_a_trace_that_raises
def test_a_start_that_is_interrupted_at_any_step_leaves_nothing(start_method: str) -> None:
    # Starting a new interpreter is slow, so test only every seventh step there.
    assert interrupt_starts(start_method, every=7 if start_method == "spawn" else 1) > 10


@posix
@needs_a_trace_that_raises
def test_a_start_that_is_interrupted_again_and_again_leaves_nothing() -> None:
    assert interrupt_starts("fork", times=1000) > 10


@posix
def test_an_interrupt_that_raises_nothing_lets_the_start_go_on(start_method: str) -> None:
    interrupts = 0

    def note(_signum: int, _frame: object) -> None:
        nonlocal interrupts
        interrupts += 1

    process: WorkerProcess[None] = WorkerProcess(target=time.sleep, args=(600,), start_method=start_method)
    before = signal.signal(signal.SIGINT, note)
    try:
        assert interrupt_at(0, process.start, traced=STARTING, times=10_000)
    finally:
        signal.signal(signal.SIGINT, before)
    assert interrupts
    assert process.is_alive()
    process.stop(0)


@posix
@pytest.mark.parametrize(
    "target", [targets.InterruptedWhilePickled, targets.raise_one_that_is_interrupted_while_pickled]
)
def test_an_interrupt_while_the_outcome_is_pickled_does_not_change_it(
    start_method: str, target: Callable[[], object]
) -> None:
    process = run(start_method, target)
    error = process.exception()
    if error is None:
        assert isinstance(process.result(), targets.InterruptedWhilePickled)
        assert process.exitcode == 0
    else:
        assert isinstance(error, targets.ErrorInterruptedWhilePickled)
        assert process.exitcode == 1


def test_pickling_an_error_raises_what_ctrl_c_does(start_method: str) -> None:
    error = run(start_method, targets.raise_one_that_raises_an_interrupt).exception()
    assert isinstance(error, KeyboardInterrupt)
    assert str(error) == "nobody has pressed it"


def test_pickling_a_result_exits(start_method: str) -> None:
    error = run(start_method, targets.ExitsWhilePickled).exception()
    assert isinstance(error, SystemExit)
    assert error.code == 5


@posix
@pytest.mark.parametrize("raises", [False, True])
@own_or_of_the_server
def test_a_signal_handler_may_exit_while_an_outcome_is_unpickled(start_method: str, raises: bool) -> None:
    def leave(*_args: object) -> None:
        sys.exit(7)

    process = run(start_method, targets.signals_when_unpickled_in, os.getpid(), raises)
    before = signal.signal(signal.SIGUSR1, leave)
    try:
        with pytest.raises(SystemExit):
            process.result()
    finally:
        signal.signal(signal.SIGUSR1, before)


@own_or_of_the_server
def test_a_with_block_accepts_a_process_that_was_started_before(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    with process as same:
        assert same is process
        process.kill()
    assert process.exitcode == -9


# --- looking ------------------------------------------------------------------------------------------------


@posix
@own_or_of_the_server
def test_states(start: Start, start_method: str) -> None:
    process: WorkerProcess[Any] = WorkerProcess(start_method=start_method)
    assert process.state is ProcessState.NEW
    process, pid = start(targets.report_and_wait)
    wait_until(lambda: process.state is ProcessState.WAITING, "it sleeps")
    os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: process.state is ProcessState.STOPPED, "it is stopped")
    process.kill()
    process.join(PATIENCE)
    assert process.state is ProcessState.EXITED
    process, _ = start(targets.report_and_spin)
    wait_until(lambda: process.state is ProcessState.RUNNING, "it runs")


@posix
@own_or_of_the_server
def test_info_and_children(start: Start) -> None:
    process, (pid, child, _) = start(targets.have_a_family)
    info = process.info()
    assert info.pid == pid
    assert info.rss_bytes > 1_000_000
    assert [one.pid for one in process.children()] == [child]
    process.stop()
    with pytest.raises(ProcessGone):
        process.info()
    with pytest.raises(ProcessGone):
        process.children()


@own_or_of_the_server
def test_reprs(start: Start, start_method: str) -> None:
    process: WorkerProcess[Any] = WorkerProcess(name="it", start_method=start_method)
    assert repr(process) == "<WorkerProcess name='it' new>"
    process, pid = start(targets.report_and_wait, name="it")
    assert repr(process) == f"<WorkerProcess name='it' pid={pid} started>"
    process.kill()
    process.join()
    assert repr(process) == f"<WorkerProcess name='it' pid={pid} exited exitcode=-9 (SIGKILL)>"
    process.close()
    assert repr(process) == "<WorkerProcess name='it' closed>"


# --- misuse -------------------------------------------------------------------------------------------------


@own_or_of_the_server
def test_what_a_process_cannot_do_after_close(start_method: str) -> None:
    process = run(start_method, targets.multiply, 1)
    process.close()
    process.close()
    uses: list[Callable[[], object]] = [
        process.start,
        process.join,
        process.result,
        process.exception,
        process.is_alive,
        process.interrupt,
        process.terminate,
        process.kill,
        process.stop,
        process.info,
        process.children,
        process.__enter__,
        lambda: process.state,
        lambda: process.exitcode,
        lambda: process.pid,
        lambda: process.sentinel,
    ]
    for use in uses:
        with pytest.raises(ClosedError, match="is closed"):
            use()
    assert process.name


@own_or_of_the_server
def test_active_children_in_one_thread_while_another_one_closes_a_process(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = WorkerProcess(target=targets.multiply, args=(1,), start_method=start_method)
    process.start()
    process.join(PATIENCE)

    class Children(set[object]):
        """Closes the process when `active_children` has just copied the set."""

        def __iter__(self) -> Iterator[object]:
            copy = list(super().__iter__())
            process.close()
            return iter(copy)

    monkeypatch.setattr(multiprocessing.process, "_children", Children({process}))
    assert multiprocessing.active_children() == []
    assert repr(process) == f"<WorkerProcess name={process.name!r} closed>"


@own_or_of_the_server
def test_close_while_it_runs(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    with pytest.raises(ValueError, match="while it is still running"):
        process.close()
    assert process.is_alive()


def test_what_a_process_cannot_do_before_its_start(start_method: str) -> None:
    process: WorkerProcess[Any] = WorkerProcess(start_method=start_method)
    uses: list[Callable[[], object]] = [
        process.join,
        process.result,
        process.exception,
        process.interrupt,
        process.terminate,
        process.kill,
        process.stop,
        process.info,
        process.children,
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"has not been started; call start\(\)"):
            use()
    assert (process.pid, process.exitcode, process.is_alive()) == (None, None, False)
    process.close()


@own_or_of_the_server
def test_a_process_cannot_be_started_twice(start_method: str) -> None:
    process = run(start_method, targets.multiply, 1)
    with pytest.raises(AssertionError, match="cannot start a process twice"):
        process.start()
    assert process.result() == 1


@own_or_of_the_server
def test_invalid_time_limits(start: Start) -> None:
    process, _ = start(targets.report_and_wait)
    for call in (process.join, process.result, process.exception, process.stop):
        for bad in (-1, float("nan")):
            with pytest.raises(ValueError, match="must be a number of seconds"):
                call(bad)
        with pytest.raises(TypeError, match="must be a number of seconds"):
            call("1")  # type: ignore[arg-type]
    assert process.is_alive()


def test_the_handle_does_not_travel(start: Start, start_method: str) -> None:
    process, _ = start(targets.report_and_wait)
    with pytest.raises(TypeError, match="cannot be sent to another"):
        pickle.dumps(process)
    if start_method != "fork":
        with pytest.raises(SerializationError, match="its argument number 1") as caught:
            WorkerProcess(target=targets.multiply, args=(process,), start_method=start_method).start()
        assert str(caught.value).endswith("what its result() returned"), "one piece of advice is enough"


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_nor_does_that_of_a_closed_process(method: str) -> None:
    process = run(method, targets.multiply, 1)
    process.close()
    with pytest.raises(SerializationError, match="belongs to the process that created it"):
        WorkerProcess(target=targets.multiply, args=(process,), start_method=method).start()


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_a_process_starts_another_with_a_method_of_its_own_as_target(start_method: str, method: str) -> None:
    with targets.Delegates(start_method, method) as process:
        assert process.result() == 7


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
@pytest.mark.parametrize("given", [True, False])
def test_a_target_without_a_name(method: str, given: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def local() -> None: ...

    monkeypatch.setattr(multiprocessing.context._default_context, "_actual_context", None)
    multiprocessing.set_start_method(method)
    for target in (local, lambda: None):
        with pytest.raises(SerializationError, match="define functions at the top level") as caught:
            # If the start method is given, the constructor itself raises.
            process = WorkerProcess(target=target, start_method=method if given else None)
            assert not given
            process.start()
        assert target.__qualname__ in str(caught.value)


@posix
def test_under_fork_any_target_will_do() -> None:
    with WorkerProcess(target=lambda: 5, start_method="fork") as process:
        assert process.result() == 5


@posix
def test_a_signal_sent_to_a_fork_does_not_reach_the_event_loop_of_its_parent() -> None:
    """A fork inherits the wake-up descriptor of asyncio, so a server could end itself with SIGTERM to a
    child.
    """
    loop, child = socket.socketpair()
    with loop, child:
        child.setblocking(False)
        before = signal.set_wakeup_fd(child.fileno())
        try:
            with WorkerProcess(target=signal.set_wakeup_fd, args=(-1,), start_method="fork") as process:
                assert process.result() == -1
            with TaskPool(1, context="fork") as pool:
                assert pool.apply(signal.set_wakeup_fd, (-1,)) == -1
        finally:
            signal.set_wakeup_fd(before)


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_the_error_says_what_cannot_be_pickled_and_nothing_is_left(method: str) -> None:
    lock = threading.Lock()
    cases: list[tuple[WorkerProcess[Any], str]] = [
        (
            WorkerProcess(target=targets.multiply, args=(1, lock), start_method=method),
            "its argument number 2",
        ),
        (
            WorkerProcess(target=targets.multiply, kwargs={"y": lock}, start_method=method),
            "its argument 'y'",
        ),
        (targets.Holder(start_method=method), "its attribute 'thing'"),
    ]
    before = _descriptors()
    for process, named in cases:
        with pytest.raises(SerializationError, match=r"cannot pickle '_thread.lock' object") as caught:
            process.start()
        assert named in str(caught.value)
        assert process.pid is None
        assert process not in multiprocessing.active_children()
    assert _descriptors() == before


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_the_error_does_not_show_what_cannot_be_pickled(method: str) -> None:
    """Its repr may contain a password or a million numbers, or may itself raise."""
    for argument in ([threading.Lock(), "secret"], targets.WithoutRepr()):
        with pytest.raises(SerializationError, match=r"its argument number 1 \(an object of type") as caught:
            WorkerProcess(target=print, args=(argument,), start_method=method).start()
        assert "secret" not in str(caught.value)


def _descriptors() -> int:
    gc.collect()
    return psutil.Process().num_fds() if sys.platform != "win32" else 0


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_an_argument_that_does_not_unpickle_in_the_child(
    method: str, capfd: pytest.CaptureFixture[str]
) -> None:
    process = run(method, targets.multiply, targets.NotThere())
    assert process.exitcode == 1
    with pytest.raises(SerializationError, match="while unpickling"):
        process.result()
    if method != "forkserver":  # there it goes to the error output of the server
        assert "while unpickling" in capfd.readouterr().err


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_an_argument_for_which_the_child_has_no_memory(method: str) -> None:
    """The error must not say that something has called `os._exit`."""
    process = run(method, targets.multiply, targets.TooBig())
    assert process.exitcode == 1
    with pytest.raises(MemoryError, match="for an argument"):
        process.result()


INTERRUPTED_ARRIVAL = """
import sys
from mpkit import WorkerProcess
from tests.contract import process_targets as targets

process = WorkerProcess(target=targets.multiply, args=(targets.Interrupts(),), start_method=sys.argv[1])
process.start()
print(process.exception().signal)
"""


@posix
@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_ctrl_c_while_the_arguments_arrive(method: str) -> None:
    """The error must not say that something has called `os._exit`, as it did under forkserver."""
    # A program of its own, because the fork server's children have the output that the server began with.
    ended = run_python("-c", INTERRUPTED_ARRIVAL, method)
    assert (ended.stdout, ended.stderr) == ("printed before\nSIGINT\n", "")


@pytest.mark.parametrize("method", [m for m in multiprocessing.get_all_start_methods() if m != "fork"])
def test_a_process_that_arrives_as_something_else(method: str) -> None:
    process = targets.BecomesText(start_method=method)
    process.start()
    process.join(PATIENCE)
    assert process.exitcode == 1
    with pytest.raises(SerializationError, match="arrived as an object of type str: the __reduce__"):
        process.result()


@posix
def test_a_start_is_undone_if_its_memory_limit_cannot_be_watched(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[ProcessIdentity] = []

    def no_thread(process: ProcessIdentity, _limit: int, _exceeded: object) -> None:
        started.append(process)
        raise RuntimeError("can't start new thread")

    process = WorkerProcess(
        target=targets.multiply, args=(3, 4), start_method=start_method, max_memory_bytes=1 << 40
    )
    with monkeypatch.context() as patch:
        patch.setattr(memory_watch, "watch", no_thread)
        with pytest.raises(RuntimeError, match="new thread"):
            process.start()
    assert gone(started[0].pid)
    assert process not in multiprocessing.active_children()
    assert process.state is ProcessState.NEW
    # The start can be tried again.
    process.start()
    assert process.result(PATIENCE) == 12


def blind(patch: pytest.MonkeyPatch, seen: list[int]) -> None:
    """Make identifying any other process fail, as without a free descriptor; record their pids in `seen`."""
    real, me = identity._examine, os.getpid()

    def no_descriptor(pid: int) -> tuple[int, bool] | None:
        if pid == me or os.getpid() != me:
            return real(pid)
        seen.append(pid)
        raise OSError(errno.EMFILE, "no descriptor left")

    patch.setattr(identity, "_examine", no_descriptor)


@posix
def test_a_start_with_a_memory_limit_is_undone_without_a_free_descriptor(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = WorkerProcess(
        target=targets.multiply, args=(3, 4), start_method=start_method, max_memory_bytes=1 << 40
    )
    seen: list[int] = []
    with monkeypatch.context() as patch:
        blind(patch, seen)
        with pytest.raises(OSError, match="no descriptor left"):
            process.start()
    assert all(gone(pid) for pid in seen)
    process.start()
    assert process.result(PATIENCE) == 12


@posix
def test_a_child_that_could_not_be_identified_at_its_start_can_be_stopped(
    start_method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    process = WorkerProcess(target=time.sleep, args=(600,), start_method=start_method)
    with monkeypatch.context() as patch:
        blind(patch, [])
        process.start()
        assert child_process.identity_of(process) is None
    assert process in multiprocessing.active_children()
    who = child_process.identity_of(process)
    assert who is not None
    assert who.pid == process.pid
    assert process.stop(0) == -signal.SIGKILL


def test_a_dropped_handle_keeps_no_descriptor_open(start_method: str) -> None:
    run(start_method, targets.multiply, 1).result()
    before = _descriptors()
    for target, argument in ((targets.many_bytes, 100_000), (targets.exit_at_once, 1)):
        run(start_method, target, argument).exception()
    assert _descriptors() == before
