"""`WorkerProcess` in whole programs: parents that die in various ways, exits, Ctrl-C, the fork server."""

from __future__ import annotations

import errno
import gc
import math
import mmap
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from subprocess import Popen

import psutil
import pytest

from mpkit import WorkerProcess
from mpkit._platform.files import anonymous, file_maps
from mpkit.errors import ClosedError
from tests.conftest import own_or_of_the_server
from tests.helpers.leftovers import names_of
from tests.helpers.processes import ROOT, gone, python, run_python, to_be_killed, wait_gone
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals")

MODULE = "tests.integration.process_programs"


def pids_of(program: Popen[str], count: int) -> list[int]:
    assert program.stdout is not None
    line = program.stdout.readline()
    pids = [int(word) for word in line.split()]
    if len(pids) != count:
        program.kill()
        pytest.fail(f"{line!r} instead of {count} pids; then {program.communicate()}")
    return pids


@contextmanager
def parent(*arguments: str) -> Iterator[Popen[str]]:
    """Give the block a program that starts children and then ends, in most cases by a signal."""
    with to_be_killed() as env, python("-m", MODULE, "parent", *arguments, env=env) as program:
        yield program


@pytest.mark.parametrize("kind", ["sleep", "spin", "gil", "no gil", "stopped"])
@own_or_of_the_server
def test_a_child_ends_with_its_killed_parent_whatever_it_is_doing(start_method: str, kind: str) -> None:
    with parent(start_method, kind, "kill") as program:
        pids = pids_of(program, 2)
        assert program.wait() == -signal.SIGKILL
        wait_gone(*pids)


def test_grandchildren_end_with_a_killed_parent(start_method: str) -> None:
    with parent(start_method, "nested", "kill") as program:
        pids = pids_of(program, 3)
        program.wait()
        wait_gone(*pids)
        # The resource tracker does that. The end of the block would kill it, with the rest of the group.
        wait_until(lambda: not any(map(names_of, pids)), "what they had in shared memory is removed")


@pytest.mark.parametrize("how", ["_exit", "abort", "thread"])
def test_a_child_ends_with_its_parent_however_that_dies(how: str) -> None:
    with parent("fork", "spin", how) as program:
        pids = pids_of(program, 2)
        program.wait()
        wait_gone(*pids)


def test_a_daemon_ends_at_a_normal_exit_of_its_parent(start_method: str) -> None:
    with parent(start_method, "sleep", "exit") as program:
        pids = pids_of(program, 2)
        assert program.wait() == 0
        # multiprocessing terminates the daemon, but not the program that the daemon has started.
        wait_gone(pids[0])
        psutil.Process(pids[1]).kill()


def test_an_orphan_lives_on_when_its_parent_is_killed(start_method: str) -> None:
    with parent(start_method, "sleep", "orphan") as program:
        child, grandchild = pids_of(program, 2)
        program.wait()
        # There is no event that shows that something will not happen. If it happened, it would be soon.
        assert not gone(child)
        for pid in (child, grandchild):
            psutil.Process(pid).kill()
        wait_gone(child, grandchild)


def test_a_normal_exit_waits_for_the_child(start_method: str) -> None:
    assert run_python("-m", MODULE, "joined_at_exit", start_method).stdout == "the child has finished\n"


def test_ctrl_c_in_a_terminal_ends_parent_and_child(start_method: str) -> None:
    with python("-m", MODULE, "interrupted", start_method) as program:
        # Parent and child print one line each, in any order.
        (child,) = {*pids_of(program, 1), *pids_of(program, 1)} - {program.pid}
        os.killpg(program.pid, signal.SIGINT)
        out, err = program.communicate()
        assert out == "0\n"
        assert "KeyboardInterrupt" in err
        assert program.returncode == -signal.SIGINT
        wait_gone(child)


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("question", ["is_alive", "terminate"])
def test_a_signal_handler_may_use_the_process_that_the_main_thread_is_using(
    method: str, question: str
) -> None:
    done = run_python("-m", MODULE, "asked_at_every_step", method, question)
    # The handler ran at many different steps.
    assert int(done.stdout) > 50


UNGUARDED = """
from mpkit import WorkerProcess
from mpkit.errors import WorkerCrashed
import os

process = WorkerProcess(target=os.getpid, start_method={method!r})
try:
    process.start()
    process.result()
except WorkerCrashed as error:
    print(error)
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_program_without_a_main_guard_is_told_to_add_one(method: str, tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(UNGUARDED.format(method=method))
    done = run_python(path)
    assert "needs the line: if __name__ == '__main__':" in done.stdout


CRASH = """
if __name__ == "__main__":
    import ctypes, sys
    from mpkit import compat
    process = compat.get_context(sys.argv[1]).Process(target=ctypes.string_at, args=(0,))
    process.start()
    process.join()
    process.join()
    print(process.exitcode)
"""


def test_faulthandler_shows_a_crash_once_if_the_program_has_enabled_it(
    start_method: str, tmp_path: Path
) -> None:
    path = tmp_path / "program.py"
    path.write_text(CRASH)
    for options, times in ((), 0), (("-X", "faulthandler"), 1):
        done = run_python(*options, path, start_method)
        assert done.stdout == f"{-signal.SIGSEGV}\n"
        assert done.stderr.count("Fatal Python error: Segmentation fault") == times


def test_killing_a_forked_process_starts_no_resource_tracker() -> None:
    program = """
import time
from multiprocessing import resource_tracker
from mpkit import WorkerProcess
process = WorkerProcess(target=time.sleep, args=(600,), start_method="fork")
process.start()
print(process.stop(0), resource_tracker._resource_tracker._fd)
"""
    assert run_python("-c", program).stdout.split() == ["-9", "None"]


def test_ctrl_c_right_after_a_fork_does_not_make_the_new_child_end_its_siblings() -> None:
    program = """
import multiprocessing, os, signal, time
from mpkit import WorkerProcess
other = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,), daemon=True)
other.start()
fork = os.fork
def fork_and_interrupt():
    pid = fork()
    if pid == 0:
        signal.raise_signal(signal.SIGINT)
    return pid
os.fork = fork_and_interrupt
process = WorkerProcess(target=time.sleep, args=(600,), start_method="fork")
process.start()
print(type(process.exception()).__name__, process.exitcode, other.is_alive())
other.kill()
"""
    assert run_python("-c", program).stdout.split() == ["KeyboardInterrupt", "1", "True"]


def test_a_process_that_is_stopped_while_it_has_a_child_prints_no_traceback() -> None:
    program = """
from mpkit import BoundedQueue, WorkerProcess
inner = '''
from mpkit import WorkerProcess
with WorkerProcess(target=list, args=(queue,), start_method=method):
    pass
'''
if __name__ == "__main__":
    for method in "fork", "forkserver":
        with BoundedQueue(1) as queue:
            with WorkerProcess.call(exec, inner, {"queue": queue, "method": method}) as process:
                queue.put_many([1, 2, 3])  # returns when the inner one has begun to take them
                print(process.stop(), type(process.exception()).__name__)
"""
    done = run_python("-c", program)
    assert (done.stdout, done.stderr) == ("1 KeyboardInterrupt\n" * 2, "")


@pytest.mark.skipif(sys.platform != "linux", reason="only on Linux mpkit gives the process its name")
def test_the_system_shows_the_name_that_was_given_to_a_process() -> None:
    read_name = Path("/proc/self/comm").read_text
    with (
        WorkerProcess(target=read_name) as numbered,
        WorkerProcess(target=read_name, name="reader of the catalogue") as named,
        WorkerProcess(target=read_name, name="reader", start_method="fork") as fork,
    ):
        assert named.result() == "reader of the c\n"
        assert fork.result() == "reader\n"
        assert numbered.result().startswith("python")


@pytest.mark.parametrize("where", ["before", "after_in_parent", "after_in_child"])
def test_an_exception_of_a_signal_handler_during_a_fork_is_not_lost(where: str) -> None:
    """Python prints exceptions that are raised in a fork hook, and goes on. mpkit must prevent that."""
    result = run_python("-m", MODULE, "signal_at_a_fork", where, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (7, "", "")


def test_a_child_of_a_plain_os_fork_joins_its_own_children_at_its_end() -> None:
    """If it tried to join its parent's children, that would fail, and its own ones would not be joined.

    They would then die with it.
    """
    program = """
import os, sys, time
from mpkit import TaskPool, WorkerProcess

def work():
    time.sleep(0.3)
    print("done", flush=True)

if __name__ == "__main__":
    pool = TaskPool(1, context="fork")
    other = WorkerProcess(target=time.sleep, args=(600,), start_method="fork")
    other.start()
    pid = os.fork()
    if not pid:
        WorkerProcess(target=work, start_method="fork").start()
        sys.exit(5)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), other.is_alive())
    other.stop(0)
    pool.close()
"""
    ended = run_python("-W", "ignore", "-c", program)
    assert ended.stdout.split() == ["done", "5", "True"], ended.stderr
    assert ended.stderr == ""


STOPPED_SERVER = """
import os, signal, threading, time
from multiprocessing import forkserver
from mpkit import WorkerProcess

inside = False

def interrupt(over):
    while not over.wait(0.1):
        os.kill(os.getpid(), signal.SIGINT)

def on_interrupt(signum, frame):
    global inside
    if inside:
        inside = False
        raise KeyboardInterrupt

if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    def new():
        return WorkerProcess(target=time.sleep, args=(600,), start_method="forkserver", daemon=True)
    first = new()
    first.start()
    first.stop(0)
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
    process = new()
    over = threading.Event()
    thread = threading.Thread(target=interrupt, args=(over,))
    thread.start()
    try:
        inside = True
        process.start()
    except KeyboardInterrupt:
        print("interrupted", process.state.value)
    over.set()
    thread.join()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGCONT)
    process.start()
    print(process.stop(0))
"""


def test_ctrl_c_interrupts_a_start_that_waits_for_a_stopped_fork_server(tmp_path: Path) -> None:
    path = tmp_path / "program.py"
    path.write_text(STOPPED_SERVER)
    assert run_python(path).stdout.split() == ["interrupted", "new", "-9"]


def test_stop_does_not_wait_for_ever_for_a_stopped_fork_server(tmp_path: Path) -> None:
    program = """
if __name__ == "__main__":
    import os, signal, time
    from multiprocessing import forkserver
    from mpkit import WorkerProcess
    from mpkit._platform.stdlib import child_popen

    child_popen._TOLD_WITHIN_SECONDS = 0.1
    process = WorkerProcess(target=time.sleep, args=(600,), start_method="forkserver")
    process.start()
    os.kill(forkserver._forkserver._forkserver_pid, signal.SIGSTOP)
    try:
        print(process.stop(0))
    finally:
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGCONT)
    print(process.exitcode, type(process.exception()).__name__)
    print(str(process.exception()).rpartition(", ")[2])
"""
    (tmp_path / "program.py").write_text(program)
    said = run_python(tmp_path / "program.py").stdout.splitlines()
    assert said == ["255", "255 WorkerCrashed", "has not told; it may be stopped"]


def test_stop_works_without_any_free_descriptor() -> None:
    program = """
import os, resource, time
from mpkit import WorkerProcess
process = WorkerProcess(target=time.sleep, args=(600,), start_method="spawn")
process.start()
taken = []
resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))
try:
    while True:
        taken.append(os.dup(0))
except OSError:
    began = time.monotonic()
    code = process.stop(0)
    print(code, time.monotonic() - began < 50)
"""
    assert run_python("-c", program).stdout.split() == ["-9", "True"]


def test_children_of_a_killed_fork_server_can_be_waited_for_and_have_no_exit_code() -> None:
    program = """
import os, signal, time
from multiprocessing import connection, forkserver
from mpkit import TaskPool, WorkerProcess
if __name__ == "__main__":
    with WorkerProcess.call(time.sleep, 600) as process, TaskPool(1) as pool:
        pool.apply(abs, (-1,))
        os.kill(forkserver._forkserver._forkserver_pid, signal.SIGKILL)
        print(pool.submit(os.abort).exception().exitcode)
        print(connection.wait([process.sentinel], 0), process.is_alive())
        process.kill()
        print(connection.wait([process.sentinel]) == [process.sentinel], process.exception().exitcode)
"""
    assert run_python("-c", program).stdout.splitlines() == ["None", "[] True", "True None"]


def test_a_start_without_enough_descriptors_does_not_harm_the_fork_server() -> None:
    # Whichever step finds no descriptor left, the fork server must not die, and no forked process may wait
    # for its orders for ever.
    program = """
import os, resource, sys, time
from multiprocessing import forkserver
import psutil
from mpkit import WorkerProcess

def sleeper():
    return WorkerProcess(target=time.sleep, args=(600,), start_method="forkserver", daemon=True)

def descriptors():
    return len(os.listdir("/proc/self/fd"))

if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
    other = sleeper()
    other.start()
    server = psutil.Process(forkserver._forkserver._forkserver_pid)
    before, refused = descriptors(), 0
    for spare in range(24):
        taken = []
        try:
            while True:
                taken.append(os.dup(0))
        except OSError:
            for descriptor in taken[len(taken) - spare:]:
                os.close(descriptor)
        process = sleeper()
        try:
            process.start()
        except OSError:
            refused += 1
        finally:
            for descriptor in taken[:len(taken) - spare]:
                os.close(descriptor)
        if process.pid is None:
            assert descriptors() == before, spare
        else:
            process.stop(0)
        process.close()
        # A fork that gets no orders ends by itself, and its server is told of that a moment later.
        until = time.monotonic() + 50
        while left := [child.pid for child in server.children() if child.pid != other.pid]:
            assert time.monotonic() < until, (spare, left)
            time.sleep(0.001)
    assert 0 < refused < 24, refused
    print(other.stop(0))
"""
    assert run_python("-c", program).stdout.split() == ["-9"]


def number_of_anonymous_files() -> int:
    return sum(
        "memfd:" in str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()
    )


@pytest.mark.skipif(sys.platform != "linux", reason="lists descriptors")
def test_a_forked_child_keeps_no_files_of_its_siblings() -> None:
    """They would keep the results of those in memory for as long as it lives."""
    counts: list[int] = []
    siblings: list[WorkerProcess[None]] = []
    for _ in range(3):
        with WorkerProcess(target=number_of_anonymous_files, start_method="fork") as process:
            counts.append(process.result(PATIENCE))
        process.close()
        siblings.append(WorkerProcess(target=signal.pause, start_method="fork"))
        siblings[-1].start()
    for sibling in siblings:
        sibling.stop(0)
    assert counts == [counts[0]] * 3
    assert counts[0] > 0


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="lists descriptors")
def test_a_fork_that_the_system_refuses_leaves_no_descriptor_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> int:
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    process = WorkerProcess(target=math.factorial, args=(5,), start_method="fork")
    counts: list[int] = []
    gc.collect()  # garbage of earlier tests must not be closed in between
    with monkeypatch.context() as patch:
        patch.setattr(os, "fork", refused)
        for _ in range(2):  # the first try may start helper processes, which stay
            with pytest.raises(BlockingIOError):
                process.start()
            counts.append(len(os.listdir("/proc/self/fd")))
    assert counts[0] == counts[1]
    with process:
        assert process.result(PATIENCE) == 120


def test_a_process_whose_result_is_never_read_causes_no_warning() -> None:
    code = (
        "import math\nfrom mpkit import WorkerProcess\n"
        "if __name__ == '__main__':\n"
        "    p = WorkerProcess.call(math.factorial, 5)\n    p.start()\n"
    )
    done = run_python("-X", "dev", "-W", "error", "-c", code)
    assert done.stderr == ""


def test_the_first_example_prints_what_it_should() -> None:
    done = run_python(ROOT / "examples" / "01_process.py")
    assert done.stdout.splitlines() == [
        "20! is 2432902008176640000",
        "it failed: division by zero",
        "restless is running: True",
        "it ended with exit code 0",
    ]


def test_closing_a_process_while_its_result_is_read_raises_closed_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process = WorkerProcess.call(divmod, 17, 5)
    process.start()
    process.join()
    real = file_maps.map_privately

    def map_late(descriptor: int, size: int) -> mmap.mmap:
        # As another thread would do at this moment.
        process.close()
        return real(descriptor, size)

    monkeypatch.setattr(anonymous, "map_privately", map_late)
    with pytest.raises(ClosedError):
        process.result()


def test_two_threads_may_close_a_process_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    process = WorkerProcess.call(divmod, 17, 5)
    process.start()
    process.join()
    popen = vars(process)["_popen"]
    real = popen.close

    def close_late() -> None:
        # As another thread would do in the middle of this call.
        monkeypatch.undo()
        process.close()
        real()

    monkeypatch.setattr(popen, "close", close_late)
    process.close()
    with pytest.raises(ClosedError):
        process.result()
