"""`ParentLink`, the guardian, families and exit watchers, with real processes and every start method."""

from __future__ import annotations

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, cast

import psutil
import pytest

from mpkit._platform.hints import override
from mpkit._platform.parent_death import guardian, guardian_process, parent_watch
from mpkit._platform.parent_death.guardian_line import GuardianLine
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.processes import exits, families, family_tree, identity, signalling
from mpkit._platform.processes.exits import ExitWatcher
from mpkit._platform.stdlib import passing
from mpkit.pool._engine import supervisor as _supervisor
from tests.conftest import own_or_of_the_server
from tests.contract import process_targets as targets
from tests.helpers.processes import gone, reap, wait_gone
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is no guardian on Windows")


@contextmanager
def a_line() -> Iterator[GuardianLine]:
    """A second `GuardianLine` in this process. It has its own guardian once `ensure_guardian` is called."""
    line = GuardianLine()
    try:
        yield line
    finally:
        if line._descriptor is not None and line.guardian_pid is not None:
            # The guardian ends when the last descriptor of the line is closed.
            os.close(line._descriptor)
            os.waitpid(line.guardian_pid, 0)


def test_no_thread_in_the_child_and_one_guardian(start_method: str) -> None:
    context: Any = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe()
    first = ParentLink.create()
    pid = parent_watch.guardian_pid()
    second = ParentLink.create()
    assert parent_watch.guardian_pid() == pid
    processes = [
        context.Process(target=targets.wait_for_a_line, args=(link, theirs)) for link in (first, second)
    ]
    with reap(*processes):
        for _ in processes:
            assert ours.recv()[1] == ["MainThread"]
        for _ in processes:
            ours.send(None)


def test_the_default_timeout_of_sockets_does_not_apply_to_the_line() -> None:
    before = socket.getdefaulttimeout()
    # If the line used it, the test would run into its own time limit.
    socket.setdefaulttimeout(10 * PATIENCE)
    try:
        # A new line, because that of this process was made without a default timeout.
        with a_line() as line:
            line.ensure_guardian()
            assert line._descriptor is not None
            assert os.get_blocking(line._descriptor)
            pid = line.guardian_pid
            line.ensure_guardian()
            assert line.guardian_pid == pid
    finally:
        socket.setdefaulttimeout(before)


def test_the_line_does_not_use_a_socket_class_that_a_library_has_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Waiting(socket.socket):
        """As in gevent: its calls block, even with MSG_DONTWAIT."""

        @override
        def recv(self, size: int, flags: int = 0, /) -> bytes:
            raise AssertionError("this would wait for ever")

        @override
        def send(self, data: Any, flags: int = 0, /) -> int:
            raise AssertionError("this would wait for room")

    monkeypatch.setattr(socket, "socket", Waiting)
    with a_line() as line:
        line.ensure_guardian()
        pid = line.guardian_pid
        assert line.send(b"F 0 0")
        line.ensure_guardian()
        assert line.guardian_pid == pid


def test_a_signal_handler_does_not_wait_for_a_guardian_that_is_being_started(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spawn = passing.spawn_passing

    def interrupted(command: Sequence[str], descriptors: Sequence[int]) -> int:
        # Called in the same thread, as by a signal handler. Another thread would wait for the guardian.
        line.ensure_guardian()
        assert line.guardian_pid is None
        return spawn(command, descriptors)

    monkeypatch.setattr(passing, "spawn_passing", interrupted)
    with a_line() as line:
        line.ensure_guardian()
        assert line.guardian_pid is not None


@pytest.mark.parametrize("orphan", [False, True])
@own_or_of_the_server
def test_a_child_that_is_killed_takes_its_family_along(start_method: str, orphan: bool) -> None:
    context: Any = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe()
    link = ParentLink.create()
    process = context.Process(target=targets.start_one_and_report, args=(link, theirs, orphan))
    process.start()
    link.started(identity.of(process.pid or 0))
    grandchild, program = ours.recv()
    # The guardian acts when a parent dies. The parent in this test is the child, since this process lives on.
    process.kill()
    process.join()
    if orphan:
        assert not gone(grandchild)
        psutil.Process(grandchild).kill()
    wait_gone(grandchild)
    psutil.Process(program).kill()
    wait_gone(program)


def test_a_guardian_that_was_killed_is_replaced() -> None:
    ParentLink.create()
    first = parent_watch.guardian_pid()
    assert first is not None
    psutil.Process(first).kill()
    wait_gone(first)
    ParentLink.create()
    second = parent_watch.guardian_pid()
    assert second not in (None, first)
    wait_until(lambda: not psutil.pid_exists(first), "the old guardian has been reaped")


def test_without_a_guardian_a_thread_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guardian_process, "IS_POSSIBLE", False)
    monkeypatch.setattr(parent_watch, "_line", GuardianLine())
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=targets.wait_for_a_line, args=(ParentLink.create(), theirs))
    with reap(process):
        assert "mpkit-parent-watch" in ours.recv()[1]
        ours.send(None)


def test_a_line_whose_descriptor_refers_to_another_file_now_is_not_written_to() -> None:
    line = GuardianLine()
    ours, theirs = socket.socketpair()
    with theirs:
        line.adopt(ours.detach())
        assert line.send(b"one")
        descriptor = line._descriptor
        assert descriptor is not None
        other_ours, other_theirs = socket.socketpair()
        with other_ours, other_theirs:
            os.dup2(other_ours.fileno(), descriptor)
            assert not line.send(b"two")
            other_theirs.setblocking(False)
            with pytest.raises(BlockingIOError):
                other_theirs.recv(10)
        os.close(descriptor)
        assert not line.send(b"three")
        assert theirs.recv(100) == b"one\n"


@contextmanager
def sleeping_program() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"]) as program:
        try:
            yield program
        finally:
            program.kill()


def identity_of(process: subprocess.Popen[bytes]) -> identity.ProcessIdentity:
    found = identity.of(process.pid)
    assert found is not None
    return found


@pytest.fixture(params=["events", "looking"])
def watcher(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> ExitWatcher:
    if request.param == "looking":
        monkeypatch.setattr(exits, "_event_source", exits._Events)
    return ExitWatcher()


def test_an_exit_watcher(watcher: ExitWatcher) -> None:
    with sleeping_program() as program, sleeping_program() as other:
        first, second = identity_of(program), identity_of(other)
        assert watcher.add(first)
        assert watcher.add(second)
        assert watcher.add(second)
        assert watcher.wait(0) == (set(), False)
        read, write = os.pipe()
        os.write(write, b"x")
        assert watcher.wait(None, also=read) == (set(), True)
        os.close(read)
        os.close(write)
        program.kill()
        assert watcher.wait(PATIENCE) == ({first}, False)
        assert not watcher.add(first)  # a zombie by now
        assert not watcher.add(second._replace(started=second.started + 1))
        watcher.discard(second)
        other.kill()
        assert watcher.wait(0) == (set(), False)
        watcher.close()


@pytest.fixture
def descriptors(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the pids for which `os.pidfd_open` is called."""
    opened: list[int] = []
    pidfd_open = getattr(os, "pidfd_open", None)
    if pidfd_open is None:
        pytest.skip("process descriptors")

    def open_one(pid: int) -> int:
        opened.append(pid)
        return int(pidfd_open(pid))

    monkeypatch.setattr(os, "pidfd_open", open_one)
    return opened


def test_an_end_is_seen_without_a_descriptor(descriptors: list[int]) -> None:
    with sleeping_program() as program, closing(ExitWatcher()) as watcher:
        process = identity_of(program)
        assert watcher.add(process, by_event=False)
        program.kill()
        assert watcher.wait(PATIENCE) == ({process}, False)
    assert descriptors == []


def test_few_descriptors_are_taken_for_many_processes(
    descriptors: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise watching or stopping a task that has started a thousand programs would open a thousand."""
    for module in (exits, _supervisor):
        monkeypatch.setattr(module, "MOST_EVENTS", 2)
    with sleeping_program() as one, sleeping_program() as two, sleeping_program() as three:
        processes = [identity_of(program) for program in (one, two, three)]
        assert sorted(exits.wait_gone(processes, 0)) == sorted(processes)
        assert descriptors == [one.pid, two.pid]
        supervisor = _supervisor.Supervisor(cast("Any", None), "pool")
        assert all(map(supervisor.watch, processes))
        assert supervisor.discard()
        assert descriptors == 2 * [one.pid, two.pid]


def test_an_end_that_is_noticed_when_a_process_is_added_again_is_reported(watcher: ExitWatcher) -> None:
    with sleeping_program() as program, closing(watcher):
        process = identity_of(program)
        assert watcher.add(process)
        program.kill()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        assert not watcher.add(process)
        assert watcher.wait(PATIENCE) == ({process}, False)
        assert watcher.wait(0) == (set(), False)


def test_a_child_is_registered_while_its_parent_dies() -> None:
    """The parent has ended, but the guardian does not know that yet when another child is registered."""
    watcher = ExitWatcher()
    killed: set[identity.ProcessIdentity] = set()

    def kill(roots: Iterable[identity.ProcessIdentity], *, spared: object = ()) -> None:
        killed.update(roots)

    keeper = guardian.Guardian(watcher, kill)
    with (
        closing(watcher),
        sleeping_program() as program,
        sleeping_program() as one,
        sleeping_program() as two,
    ):
        parent, first, second = map(identity_of, (program, one, two))
        keeper.obey(b"W %d %d %d %d" % (*parent, *first))
        program.kill()
        os.waitid(os.P_PID, program.pid, os.WEXITED | os.WNOWAIT)
        keeper.obey(b"W %d %d %d %d" % (*parent, *second))
        assert killed == set()
        ended, _ = watcher.wait(PATIENCE)
        keeper.ended(ended | keeper.take_found_ended())
        assert killed == {first, second}
        assert keeper.idle


def test_families() -> None:
    me = identity.current()
    code = (
        "import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(600)'])"
    )
    with subprocess.Popen([sys.executable, "-S", "-c", code]) as program:
        child = identity_of(program)
        wait_until(lambda: family_tree.descendants([child]), "the grandchild is there")
        (grandchild,) = family_tree.descendants([child])
        found = family_tree.descendants([me])
        assert found.index(child) < found.index(grandchild)
        assert not {child, grandchild} & set(family_tree.descendants([me], spared={child}))
        assert family_tree.descendants([child._replace(started=child.started + 1)]) == []
        assert exits.wait_gone([child, grandchild], 0.01) != []
        assert not signalling.send_signal(grandchild._replace(started=1), signal.SIGKILL)
        assert signalling.send_signal(grandchild, 0)
        families.kill_families([child])
        assert exits.wait_gone([child, grandchild], PATIENCE) == []
        assert not signalling.send_signal(child, 0)


def test_helper_processes_are_not_descendants() -> None:
    ParentLink.create()
    pid = parent_watch.guardian_pid()
    assert pid is not None
    assert guardian.__file__ in psutil.Process(pid).cmdline()
    assert pid not in {process.pid for process in family_tree.descendants([identity.current()])}
