"""Dying with the parent, if a participant dies between two steps of the protocol.

The steps are described in docs/explanation/dying-with-the-parent.md. Each program kills (or holds up) one
participant at exactly one step, and then kills itself. All its processes must end, except for orphans and
where the documentation says otherwise.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from mpkit._platform.parent_death import guardian_process
from mpkit._platform.parent_death.guardian import IGNORED
from mpkit._platform.processes import identity, stat_file
from tests.conftest import own_or_of_the_server
from tests.helpers.marked import Mark
from tests.helpers.processes import gone, python, to_be_killed, wait_gone
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks for the processes in /proc")

COMMON = """
import os, signal, sys, time
import multiprocessing
from pathlib import Path
from mpkit import TaskPool, WorkerProcess
from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import exits, identity
from mpkit._platform.stdlib import passing

directory, method = Path(sys.argv[1]), sys.argv[2]

def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)

def note(name: str) -> None:
    # The file must appear together with its content, because it is read as soon as it exists.
    (directory / f"{name}.new").write_text(str(os.getpid()))
    os.replace(directory / f"{name}.new", directory / name)

def sleep(name: str) -> None:
    note(name)
    time.sleep(600)

def wait_for(name: str) -> int:
    while not (directory / name).exists():
        time.sleep(0.001)
    return int((directory / name).read_text())

def wait_ended(pid: int) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
"""


class Program:
    """A running program, and the pids that it has noted in its directory."""

    def __init__(self, mark: Mark, directory: Path) -> None:
        self.mark = mark
        self._directory = directory

    def pid(self, name: str) -> int:
        """Wait until a pid has been noted under this name, and return it."""
        path = self._directory / name
        wait_until(path.exists, f"{name} has been noted")
        return int(path.read_text())

    def is_gone(self) -> bool:
        return not self.mark.living()


@contextmanager
def program(text: str, directory: Path, *arguments: str) -> Iterator[Program]:
    """Run the program during the block. It must die by SIGKILL; what is left of it at the end is killed."""
    path = directory / "program.py"
    path.write_text(COMMON + text)
    running = Program(Mark(), directory)
    with to_be_killed() as temporary:
        env = {**temporary, **running.mark.environment, "PYTHONPATH": f"{directory}:{PYTHON_PATH}"}
        # Errors go to a file: processes that live on would hold a pipe open.
        errors = directory / "errors"
        with (
            errors.open("w") as stderr,
            python(path, directory, *arguments, env=env, stdout=stderr, stderr=stderr) as process,
        ):
            try:
                yield running
                assert process.wait(PATIENCE) == -9, errors.read_text()
            finally:
                for pid in running.mark.living():
                    with suppress(psutil.NoSuchProcess):
                        psutil.Process(pid).kill()
                wait_until(running.is_gone, "all of it has been killed")


PYTHON_PATH = ":".join(path for path in sys.path if path)


def check_that_all_of_it_ends(text: str, directory: Path, *arguments: str) -> None:
    with program(text, directory, *arguments) as running:
        wait_until(running.is_gone, f"all of it has ended: {running.mark.living()}")


HANGING_FORK = """
def hang() -> None:
    # As code of some library might do that runs in each child right after the fork.
    note("child")
    time.sleep(600)

os.register_at_fork(after_in_child=hang)
if method == "pool":
    pool = TaskPool(1, context="fork")
else:
    WorkerProcess(target=print, start_method="fork").start()
wait_for("child")
die()
"""


@pytest.mark.parametrize("kind", ["process", "pool"])
def test_a_fork_that_hangs_before_it_registers_itself_ends_with_its_parent(kind: str, tmp_path: Path) -> None:
    check_that_all_of_it_ends(HANGING_FORK, tmp_path, kind)


STUBBORN = """
import threading

def child() -> None:
    if os.fork() == 0:
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, signal.SIG_IGN)
        sleep("stubborn")
    wait_for("stubborn")
    sleep("child")

if method == "pool":
    pool = TaskPool(1, context="fork", grace_period=600)
    pool.submit(child)
else:
    process = WorkerProcess(target=child, start_method="fork")
    process.start()
ending = identity.of(wait_for("child"))
threading.Thread(target=pool.terminate if method == "pool" else process.stop, daemon=True).start()
exits.wait_gone([ending], None)
die()
"""


@pytest.mark.parametrize("kind", ["process", "pool"])
def test_the_parent_dies_while_it_waits_for_processes_that_ignore_signals(kind: str, tmp_path: Path) -> None:
    check_that_all_of_it_ends(STUBBORN, tmp_path, kind)


HANGING_ORPHAN = """
def hang() -> None:
    note("orphan")
    time.sleep(600)

def child() -> None:
    os.register_at_fork(after_in_child=hang)
    WorkerProcess(target=print, start_method="fork", orphan=True).start()
    wait_for("orphan")
    sleep("child")

if __name__ == "__main__":
    WorkerProcess(target=child, start_method=method).start()
    wait_for("child")
    die()
"""


@own_or_of_the_server
def test_an_orphan_that_hangs_before_it_registers_itself_lives_on(start_method: str, tmp_path: Path) -> None:
    """It must not be killed as a descendant of the child that has started it: its start is over."""
    with program(HANGING_ORPHAN, tmp_path, start_method) as running:
        wait_gone(running.pid("child"))
        assert not gone(running.pid("orphan"))


PARENT_DIES_BEFORE_IT_REGISTERS = """
if __name__ == "__main__":
    # Called in the parent when the child has been started.
    parent_watch.ParentLink.started = die
    if sys.argv[3] == "pool":
        TaskPool(1, context=method)
    else:
        WorkerProcess(target=sleep, args=("child",), start_method=method).start()
"""


@pytest.mark.parametrize("kind", ["process", "pool"])
def test_the_parent_dies_before_it_registers_the_child(start_method: str, kind: str, tmp_path: Path) -> None:
    check_that_all_of_it_ends(PARENT_DIES_BEFORE_IT_REGISTERS, tmp_path, start_method, kind)


PARENT_DIES_WITH_A_NEW_GUARDIAN = """
if __name__ == "__main__":
    spawn = passing.spawn_passing

    def spawn_and_die(*args: object) -> int:
        spawn(*args)
        die()

    passing.spawn_passing = spawn_and_die
    WorkerProcess(target=sleep, args=("child",), start_method=method).start()
"""


def test_the_parent_dies_before_it_knows_its_guardian(tmp_path: Path) -> None:
    check_that_all_of_it_ends(PARENT_DIES_WITH_A_NEW_GUARDIAN, tmp_path, "fork")


SIGNAL_WHILE_THE_GUARDIAN_COMES_UP = """
if __name__ == "__main__":
    spawn = passing.spawn_passing

    def spawn_and_stop(*args: object) -> int:
        pid = spawn(*args)
        os.kill(pid, signal.SIGSTOP)
        return pid

    passing.spawn_passing = spawn_and_stop
    WorkerProcess(target=sleep, args=("child",), start_method="fork").start()
    wait_for("child")
    # As if a terminal had sent it to the whole process group.
    os.kill(parent_watch.guardian_pid(), getattr(signal, method))
    os.kill(parent_watch.guardian_pid(), signal.SIGCONT)
    die()
"""


@pytest.mark.parametrize("name", IGNORED)
def test_a_signal_meant_for_the_application_does_not_kill_a_starting_guardian(
    name: str, tmp_path: Path
) -> None:
    """If it were killed, the processes that have registered already would no longer end with the parent."""
    check_that_all_of_it_ends(SIGNAL_WHILE_THE_GUARDIAN_COMES_UP, tmp_path, name)


def _watched_by(guardian: int) -> int:
    """How many process descriptors a guardian has."""
    number = 0
    for descriptor in Path(f"/proc/{guardian}/fd").iterdir():
        with suppress(FileNotFoundError):
            number += "pidfd" in os.readlink(descriptor)
    return number


def test_all_lines_are_read_before_anybody_is_killed() -> None:
    """The guardian read 64 KiB at a time. If it was late, it killed an orphan whose line came after these."""
    line, guardian = guardian_process.start(sys.executable)
    parent, child = (subprocess.Popen(["sleep", "600"]) for _ in range(2))
    try:
        identities = [identity.look(process.pid) for process in (parent, child)]
        assert identities[0] is not None
        assert identities[1] is not None
        line.sendall(b"W %d %d %d %d\n" % (*identities[0], *identities[1]))
        wait_until(lambda: _watched_by(guardian) == 2, "the guardian watches both")
        os.kill(guardian, signal.SIGSTOP)
        wait_until(lambda: stat_file.is_stopped(guardian), "it is stopped")
        line.sendall(b"\n" * 70_000)
        line.sendall(b"F %d %d\n" % identities[1])
        parent.kill()
        parent.wait()
        os.kill(guardian, signal.SIGCONT)
        # It ends when it has read everything, because no other process has this end of the line.
        line.close()
        os.waitid(os.P_PID, guardian, os.WEXITED | os.WNOWAIT)
        assert child.poll() is None
    finally:
        line.close()
        os.kill(guardian, signal.SIGKILL)
        os.waitpid(guardian, 0)
        for process in (parent, child):
            process.kill()
            process.wait()


GUARDIAN_DIES_BEFORE_THE_CHILD_IS_STARTED = """
if __name__ == "__main__":
    create = parent_watch.ParentLink.create

    def create_and_kill(**options: bool) -> parent_watch.ParentLink:
        link = create(**options)
        os.kill(parent_watch.guardian_pid(), signal.SIGKILL)
        wait_ended(parent_watch.guardian_pid())
        return link

    parent_watch.ParentLink.create = create_and_kill
    if sys.argv[3] == "pool":
        pool = TaskPool(1, context=method)
        pool.submit(note, "child").result()
    else:
        WorkerProcess(target=sleep, args=("child",), start_method=method).start()
    wait_for("child")
    die()
"""


@pytest.mark.parametrize("kind", ["process", "pool"])
@own_or_of_the_server
def test_the_guardian_dies_before_the_child_is_started(start_method: str, kind: str, tmp_path: Path) -> None:
    """The child cannot register itself with the dead guardian, so it must watch its parent itself."""
    check_that_all_of_it_ends(GUARDIAN_DIES_BEFORE_THE_CHILD_IS_STARTED, tmp_path, start_method, kind)


GUARDIAN_DIES_BEFORE_THE_NEXT_CHILD = """
if __name__ == "__main__":
    WorkerProcess(target=sleep, args=("first",), start_method=method).start()
    wait_for("first")
    os.kill(parent_watch.guardian_pid(), signal.SIGKILL)
    wait_ended(parent_watch.guardian_pid())
    WorkerProcess(target=sleep, args=("second",), start_method=method).start()
    wait_for("second")
    die()
"""


@own_or_of_the_server
def test_the_guardian_dies_before_the_next_child(start_method: str, tmp_path: Path) -> None:
    with program(GUARDIAN_DIES_BEFORE_THE_NEXT_CHILD, tmp_path, start_method) as running:
        wait_gone(running.pid("second"))
        # The first child was registered with the dead guardian: as documented, it lives on.
        assert not gone(running.pid("first"))


SERVER_DIES_AFTER_THE_FORK = """
def arrive() -> None:
    note("worker")

if __name__ == "__main__":
    multiprocessing.set_forkserver_preload(["deadly"])
    try:
        TaskPool(1, initializer=arrive, context=method)
    except Exception as error:
        assert "the fork server of multiprocessing has died" in str(error), error
    # The worker ends although this program is still alive.
    worker = identity.of(wait_for("worker"))
    assert worker is None or exits.wait_gone([worker], None) == []
    die()
"""

DEADLY = """
import os, signal, sys, time

# Runs in the server when it has forked the worker, but has not told the pool of it yet.
def after_fork() -> None:
    while not os.path.exists({worker!r}):
        time.sleep(0.001)
    os.kill(os.getpid(), signal.SIGKILL)

os.register_at_fork(after_in_parent=after_fork)
"""


def test_the_fork_server_dies_before_it_tells_of_a_worker(tmp_path: Path) -> None:
    """Otherwise the worker waits for tasks that no pool can send it, as long as the program lives."""
    (tmp_path / "deadly.py").write_text(DEADLY.format(worker=str(tmp_path / "worker")))
    check_that_all_of_it_ends(SERVER_DIES_AFTER_THE_FORK, tmp_path, "forkserver")
