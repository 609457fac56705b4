"""`mpkit._platform.stdlib` in whole programs: the exit hooks of multiprocessing, and its fork server."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, run_python

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork, and the fork server")


def test_exit_hooks_run_before_and_after_multiprocessing_joins_children() -> None:
    # The child ends when the first hook closes the pipe. If that hook ran too late, the program would never
    # end. The hooks are registered before multiprocessing's own exit hook, and after it.
    code = """
import os, sys
if sys.argv[1] == "early":
    from mpkit._platform.stdlib import exit_hooks
import multiprocessing.util
from mpkit._platform.stdlib import exit_hooks

reader, writer = os.pipe()
context = multiprocessing.get_context("fork")

def wait():
    os.close(writer)
    os.read(reader, 1)
    print("the child ends", flush=True)

def let_go():
    print("before", len(multiprocessing.active_children()), flush=True)
    os.close(writer)

exit_hooks.at_exit_before_children_joined(let_go)
exit_hooks.at_exit_after_children_joined(
    lambda: print("after", len(multiprocessing.active_children()), flush=True)
)
context.Process(target=wait).start()
"""
    for when in ("early", "late"):
        said = run_python("-c", code, when).stdout.splitlines()
        assert said == ["before 1", "the child ends", "after 0"]


SHOW = """
import sys
def show():
    import signal
    loaded = [name for name in ("wave", "mpkit.pool._worker.worker") if name in sys.modules]
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    print(loaded, sorted(blocked), flush=True)
def sleep():
    import time
    time.sleep(600)
def show_where_recvfds_is_from():
    from multiprocessing import reduction
    print(reduction.recvfds.__module__, flush=True)
def interrupt_myself():
    import os, signal, time
    try:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(60)
    except KeyboardInterrupt:
        sys.exit(7)
"""


def in_a_fork_server(tmp_path: Path, body: str, **environment: str) -> list[str]:
    """Run a program with `body` in its main module, and return the lines that it prints.

    The functions of `SHOW` are for its children. `show` prints which of two modules are loaded, and which
    signals are blocked.
    """
    script = tmp_path / "program.py"
    script.write_text(
        f"{SHOW}\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing, sys\n"
        "    from multiprocessing import forkserver\n"
        "    from mpkit._platform.stdlib import fork_server\n"
        "    context = multiprocessing.get_context('forkserver')\n"
        + "".join(f"    {line}\n" for line in body.strip().splitlines())
    )
    return run_python(script, env={"PYTHONPATH": str(ROOT / "src"), **environment}).stdout.splitlines()


CHILD = "child = context.Process(target=show); child.start(); child.join()"


def test_the_fork_server_also_imports_what_the_application_has_asked_for(
    tmp_path: Path,
) -> None:
    body = f"""
context.set_forkserver_preload(["wave"])
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
print(forkserver._forkserver._preload_modules)
{CHILD}
"""
    assert in_a_fork_server(tmp_path, body) == ["['wave']", "['wave', 'mpkit.pool._worker.worker'] []"]


@pytest.mark.parametrize(
    "asked",
    [
        "WorkerProcess(target=loaded_since, start_method='forkserver') as child: print(child.result())",
        "TaskPool(1, context='forkserver') as pool: print(pool.apply(loaded_since))",
    ],
    ids=["process", "pool"],
)
def test_children_of_the_fork_server_need_not_import_mpkits_modules(tmp_path: Path, asked: str) -> None:
    """Importing them would cost each process 20 ms. The same holds for what multiprocessing needs."""
    (tmp_path / "noting.py").write_text("import sys\nBEFORE = set(sys.modules)\n")
    script = tmp_path / "program.py"
    script.write_text(
        "import noting, sys\n"
        "from mpkit import BoundedQueue, TaskPool, WorkerProcess\n"
        "def loaded_since(): return sorted(set(sys.modules) - noting.BEFORE)\n"
        "if __name__ == '__main__':\n"
        "    import multiprocessing\n"
        "    multiprocessing.set_forkserver_preload([])\n"  # else newer versions import the main module first
        f"    with {asked}\n"
    )
    path = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    assert run_python(script, env={"PYTHONPATH": path}).stdout == "[]\n"


def test_children_of_the_fork_server_do_not_inherit_its_garbage(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        "import gc\n"
        "from mpkit import WorkerProcess\n"
        "def waiting(): return gc.get_count()[1:]\n"
        "if __name__ == '__main__':\n"
        "    for _ in range(2):\n"
        "        with WorkerProcess(target=waiting, start_method='forkserver') as process:\n"
        "            print(*process.result())\n"
    )
    said = run_python(script, env={"PYTHONPATH": str(ROOT / "src")}).stdout.split()
    assert [int(count) <= 3 for count in said] == [True] * 4, said


def test_a_failing_import_in_the_fork_server_is_reported(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("raise ValueError")
    body = """
options = {'on_error': 'fail'} if sys.version_info >= (3, 15) else {}
context.set_forkserver_preload(['broken'], **options)
from mpkit import TaskPool, WorkerProcess
for start in WorkerProcess(start_method='forkserver').start, lambda: TaskPool(1, context='forkserver'):
    try:
        start()
    except RuntimeError as error:
        print(type(error).__name__, 'the fork server of multiprocessing has died' in str(error))
"""
    path = os.pathsep.join([str(ROOT / "src"), str(tmp_path)])
    said = in_a_fork_server(tmp_path, body, PYTHONPATH=path)
    assert said == ["WorkerCrashed True", "PoolBroken True"]


def test_a_fork_server_that_is_already_running_is_not_replaced(tmp_path: Path) -> None:
    body = f"""
forkserver.ensure_running()
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
{CHILD}
"""
    assert in_a_fork_server(tmp_path, body) == ["[] []"]


@pytest.mark.skipif(sys.platform != "linux", reason="needs abstract sockets")
def test_no_other_user_can_connect_to_the_fork_server(tmp_path: Path) -> None:
    # Python up to 3.10.8 used abstract sockets, to which any user could connect and then run code.
    body = """
import os
from multiprocessing import connection, util
file_address = connection.arbitrary_address
def arbitrary_address(family):
    return f"\\0mpkit-{os.getpid()}" if util.abstract_sockets_supported else file_address(family)
connection.arbitrary_address = arbitrary_address
fork_server.start_fork_server([])
address = forkserver._forkserver._forkserver_address
print(address[:1], oct(os.stat(address).st_mode & 0o777))
"""
    assert in_a_fork_server(tmp_path, body) == ["/ 0o600"]


def test_children_of_the_application_do_not_have_signals_blocked_after_a_pool(tmp_path: Path) -> None:
    body = f"""
from mpkit import TaskPool
with TaskPool(1, context="forkserver") as pool:
    assert pool.submit(abs, -1).result() == 1
{CHILD}
"""
    assert in_a_fork_server(tmp_path, body) == ["['mpkit.pool._worker.worker'] []"]


def test_the_fork_server_starts_even_if_the_temporary_directory_has_a_long_name(tmp_path: Path) -> None:
    # Before Python 3.14, the address of the server's socket would be too long.
    (long := tmp_path / ("long" * 20)).mkdir()
    body = f"""
import tempfile
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
{CHILD}
print(child.exitcode, tempfile.gettempdir() == {str(long)!r})
"""
    lines = in_a_fork_server(tmp_path, body, TMPDIR=str(long))
    assert lines == ["['mpkit.pool._worker.worker'] []", "0 True"]


def test_the_fork_server_works_if_the_program_has_sigchld_blocked(
    tmp_path: Path,
) -> None:
    # A program has it blocked if it receives it from `sigwait` or a descriptor. There, it must stay blocked,
    # and pending signals must stay pending.
    body = f"""
import os, signal
signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGCHLD}})
os.kill(os.getpid(), signal.SIGCHLD)
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
{CHILD}
print(child.exitcode, signal.sigpending() == {{signal.SIGCHLD}})
"""
    assert in_a_fork_server(tmp_path, body) == ["['mpkit.pool._worker.worker'] []", "0 True"]


def test_ctrl_c_while_the_fork_server_starts_ends_neither_it_nor_its_children(tmp_path: Path) -> None:
    # This module is imported at the start of the server, before that ignores the signal.
    (tmp_path / "interrupting.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)"
    )
    body = f"""
context.set_forkserver_preload(["interrupting"])
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
server = forkserver._forkserver._forkserver_pid
{CHILD}
print(child.exitcode, server == forkserver._forkserver._forkserver_pid)
child = context.Process(target=interrupt_myself); child.start(); child.join()
print(child.exitcode)
import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    lines = in_a_fork_server(tmp_path, body, PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    assert lines == ["['mpkit.pool._worker.worker'] []", "0 True", "7", "set()"]


def test_ctrl_c_while_a_process_starts_the_fork_server_leaves_no_signals_blocked(
    tmp_path: Path,
) -> None:
    (tmp_path / "interrupting.py").write_text(
        "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(0.01)"
    )
    body = """
context.set_forkserver_preload(["interrupting"])
from mpkit import WorkerProcess
with WorkerProcess.call(abs, -2) as process:
    print(process.result())
child = context.Process(target=interrupt_myself); child.start(); child.join()
print(child.exitcode)
import signal; print(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""
    lines = in_a_fork_server(tmp_path, body, PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    assert lines == ["2", "7", "set()"]


def test_starting_a_process_in_a_signal_handler_during_another_start_is_refused(tmp_path: Path) -> None:
    program = """
if __name__ == "__main__":
    from multiprocessing import reduction, resource_tracker
    from mpkit import WorkerProcess

    def ask(what):
        process = WorkerProcess(target=print, args=(what,), start_method="forkserver")
        try:
            process.start()
        except RuntimeError as error:
            print(str(error).partition(" (")[0], flush=True)
        else:
            process.join()
            process.close()

    def interrupted():
        # multiprocessing holds an internal lock when it calls this.
        resource_tracker.ensure_running = real
        ask("inner")
        real()

    def interrupted_when_connected(*arguments):
        # The server is already waiting for these descriptors.
        reduction.sendfds = send
        ask("inner")
        send(*arguments)

    real = resource_tracker.ensure_running
    for _ in "starting", "running":
        resource_tracker.ensure_running = interrupted
        ask("outer")
    send = reduction.sendfds
    reduction.sendfds = interrupted_when_connected
    ask("outer")
"""
    (tmp_path / "program.py").write_text(program)
    said = run_python(tmp_path / "program.py").stdout.splitlines()
    assert said == ["this thread is already talking to the fork server of multiprocessing", "outer"] * 3


def test_a_client_that_disconnects_during_a_request_does_not_end_the_fork_server(tmp_path: Path) -> None:
    # As if a process were killed while it starts another one. The server's children must find multiprocessing
    # unchanged. The server acknowledges descriptors, as on macOS.
    (tmp_path / "acknowledging.py").write_text(
        "from multiprocessing import reduction\nreduction.ACKNOWLEDGE = True"
    )
    body = """
import acknowledging, os, select, signal, socket
from multiprocessing import resource_tracker
context.set_forkserver_preload(["acknowledging"])
fork_server.start_fork_server([])
other = context.Process(target=sleep, daemon=True); other.start()
server = forkserver._forkserver
pid = server._forkserver_pid
for sent in 0, 1, 0, 1:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(server._forkserver_address)
        if sys.version_info >= (3, 14):
            select.select([client], [], [])  # the server's question has arrived; it is never read
        elif sent:
            os.kill(pid, signal.SIGSTOP)  # the server goes on when the client has disconnected
            os.waitpid(pid, os.WUNTRACED)
            reader, writer = os.pipe()
            code = os.open(os.devnull, os.O_WRONLY)
            sent = [reader, code, server._forkserver_alive_fd, resource_tracker.getfd()]
            socket.send_fds(client, [bytes([len(sent)])], sent)
            os.close(writer)
    os.kill(pid, signal.SIGCONT)
child = context.Process(target=show_where_recvfds_is_from); child.start(); child.join()
other.kill(); other.join()
print(other.exitcode, server._forkserver_pid == pid)
"""
    path = f"{ROOT / 'src'}{os.pathsep}{tmp_path}"
    lines = in_a_fork_server(tmp_path, body, PYTHONPATH=path)
    assert lines == ["multiprocessing.reduction", "-9 True"]


def test_a_fork_that_the_system_refuses_does_not_end_the_fork_server(tmp_path: Path) -> None:
    """If the server ended, the exit codes of all its children would be lost, those of multiprocessing too."""
    (tmp_path / "refusing.py").write_text(
        "import errno, os\n"
        "fork = os.fork\n"
        "def refuse():\n"
        "    if os.path.exists('refused'):\n"
        "        raise BlockingIOError(errno.EAGAIN, 'no process')\n"
        "    return fork()\n"
        "os.fork = refuse\n"
    )
    body = """
import os
from mpkit import TaskPool, WorkerProcess
os.chdir(os.path.dirname(os.path.abspath(sys.argv[0])))
context.set_forkserver_preload(["refusing"])
fork_server.start_fork_server([])
other = context.Process(target=sleep, daemon=True); other.start()
server = forkserver._forkserver._forkserver_pid
descriptors = lambda: len(os.listdir(f"/proc/{server}/fd")) if sys.platform == "linux" else 0
before = descriptors()
open("refused", "w").close()
for _ in range(3):
    try:
        WorkerProcess(target=show, start_method="forkserver").start()
    except Exception as error:
        print(type(error).__name__)
print(descriptors() <= before)
os.unlink("refused")
with WorkerProcess.call(abs, -2) as process:
    print(process.result())
other.kill(); other.join()
print(other.exitcode, forkserver._forkserver._forkserver_pid == server)
"""
    lines = in_a_fork_server(tmp_path, body, PYTHONPATH=f"{ROOT / 'src'}{os.pathsep}{tmp_path}")
    assert lines == ["WorkerCrashed"] * 3 + ["True", "2", "-9 True"]


def test_a_child_of_a_plain_os_fork_starts_its_own_fork_server(tmp_path: Path) -> None:
    script = tmp_path / "program.py"
    script.write_text(
        """
import os
from mpkit import TaskPool, WorkerProcess
if __name__ == "__main__":
    with TaskPool(1, context="forkserver") as pool:
        assert pool.apply(abs, (-1,)) == 1
        pid = os.fork()
        if not pid:
            with TaskPool(1, context="forkserver") as mine, WorkerProcess.call(abs, -3) as process:
                print(mine.apply(abs, (-2,)), process.result(), flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        print(pool.apply(abs, (-4,)))
"""
    )
    assert run_python(script).stdout.splitlines() == ["2 3", "4"]


def test_a_plain_os_fork_before_mpkit_is_imported_leads_to_a_new_fork_server(
    tmp_path: Path,
) -> None:
    """mpkit's fork hook, which forgets the parent's server, was not registered at the fork.

    Even so, no start may fail with ChildProcessError.
    """
    script = tmp_path / "program.py"
    script.write_text(
        """
import multiprocessing, os
if __name__ == "__main__":
    child = multiprocessing.get_context("forkserver").Process(target=int)
    child.start(); child.join()
    pid = os.fork()
    if not pid:
        from mpkit import WorkerProcess
        with WorkerProcess(target=abs, args=(-3,), start_method="forkserver") as process:
            print(process.result(), flush=True)
        os._exit(0)
    os.waitpid(pid, 0)
"""
    )
    assert run_python(script).stdout.splitlines() == ["3"]


def test_the_fork_server_imports_nothing_if_it_would_find_another_mpkit(
    tmp_path: Path,
) -> None:
    other = tmp_path / "other" / "mpkit"
    other.mkdir(parents=True)
    (other / "__init__.py").write_text("raise ImportError('another one')")
    body = f"""
import mpkit
print("other" in mpkit.__path__[0])
fork_server.start_fork_server(["mpkit.pool._worker.worker"])
{CHILD}
"""
    # The program has imported its own mpkit already. From here on, PYTHONPATH leads to another one.
    body = f"import os; os.environ['PYTHONPATH'] = {str(other.parent)!r}" + body
    assert in_a_fork_server(tmp_path, body) == ["False", "[] []"]


WITHOUT_A_DIRECTORY = """
import os, sys
from mpkit import TaskPool, WorkerProcess

if __name__ == "__main__":
    method, gone = sys.argv[1:]
    os.mkdir(gone)
    os.chdir(gone)
    os.rmdir(gone)
    for start in (
        lambda: TaskPool(1, context=method),
        lambda: WorkerProcess(target=abs, args=(-1,), start_method=method).start(),
    ):
        try:
            start()
        except FileNotFoundError as error:
            print(error.strerror)
    os.chdir("/")
    with TaskPool(1, context=method) as pool:
        print(pool.apply(abs, (-1,)))
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_removed_working_directory_is_named_as_the_reason(tmp_path: Path, method: str) -> None:
    script = tmp_path / "program.py"
    script.write_text(WITHOUT_A_DIRECTORY)
    *said, result = run_python(script, method, tmp_path / "gone").stdout.splitlines()
    assert len(said) == 2
    for message in said:
        assert message.startswith("the working directory of this program has been removed")
        assert method in message
    assert result == "1"


KILLED_IN_THE_MAKING = """
import os, signal, sys
from mpkit import TaskPool, WorkerProcess
from mpkit._platform.processes import identity
from mpkit._platform.stdlib import sem_lock
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import WorkerCrashed
made = sem_lock.SemLock

def die_where_it_is_made(stays):
    def make(kind, value, maxvalue, name, unlink):
        if stays:
            made(kind, value, maxvalue, name, False)
        os.kill(os.getpid(), signal.SIGKILL)
    sem_lock.SemLock = make
    Semaphore.private()

if __name__ == "__main__":
    # This starts the resource tracker. A child that is forked earlier would start its own.
    Semaphore.private()
    for stays in (False, True):
        with WorkerProcess(target=die_where_it_is_made, args=(stays,), start_method="fork") as child:
            pass
        with TaskPool(1, context="fork") as pool:
            try:
                pool.apply(die_where_it_is_made, (stays,))
            except WorkerCrashed as crash:
                print("crashed", crash.signal)
    print([name for name in os.listdir("/dev/shm") if f"mpkit-private-{child.pid}-" in name])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")
def test_a_process_killed_while_it_makes_a_private_semaphore_leaves_nothing(
    tmp_path: Path,
) -> None:
    script = tmp_path / "program.py"
    script.write_text(KILLED_IN_THE_MAKING)
    done = run_python(script)
    assert done.stdout.splitlines() == ["crashed SIGKILL", "crashed SIGKILL", "[]"]
    assert done.stderr == ""
