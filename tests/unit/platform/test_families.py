"""`mpkit._platform.processes.families`: a whole family is suspended, then killed, whatever comes between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeAlias

import pytest

from mpkit._platform.processes import exits, families, family_tree, identity, signalling, stat_file
from mpkit._platform.processes.identity import ProcessIdentity
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and stops processes")


Family: TypeAlias = tuple[subprocess.Popen[bytes], ProcessIdentity, ProcessIdentity]


@pytest.fixture
def family() -> Iterator[Family]:
    """A process with a child: its `Popen`, its identity, and the identity of the child."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = identity.of(int(process.stdout.readline()))
    who = identity.of(process.pid)
    assert who is not None
    assert child is not None
    yield process, who, child
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()


def no_descriptor(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make reading the table of processes fail the first `times` times."""
    real, failures = os.listdir, iter(range(times))

    def listdir(path: str = ".") -> list[str]:
        if path == "/proc" and next(failures, None) is not None:
            raise OSError(errno.EMFILE, "no descriptor left")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)


def test_without_a_descriptor_the_roots_are_killed(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    process, who, _ = family
    no_descriptor(1_000_000, monkeypatch)
    families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert family_tree.with_descendants([who]) == [who]


def test_a_temporary_lack_of_descriptors_hides_no_process(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    no_descriptor(1, monkeypatch)
    assert family_tree.with_descendants([who]) == [who, child]
    no_descriptor(1, monkeypatch)
    families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert exits.wait_gone([child], PATIENCE) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "broken")])
def test_whatever_comes_between_stopping_and_killing(
    error: type[BaseException] | BaseException, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, _ = family

    def raising() -> dict[int, tuple[int, ProcessIdentity]]:
        raise error

    monkeypatch.setattr(family_tree, "_parents", raising)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_an_interrupt_between_two_kills_spares_no_process(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    real, interrupts = signalling.send_signal, iter([KeyboardInterrupt, KeyboardInterrupt])

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        if signum == signal.SIGKILL:
            for interrupt in interrupts:
                raise interrupt
        return real(process, signum)

    monkeypatch.setattr(signalling, "send_signal", send_signal)
    with pytest.raises(KeyboardInterrupt):
        families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert exits.wait_gone([child], PATIENCE) == []


def test_a_process_that_cannot_be_signalled_does_not_save_the_others(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    real = signalling.send_signal

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        if signum == signal.SIGKILL and process == who:
            raise OSError(errno.EIO, "broken")
        return real(process, signum)

    monkeypatch.setattr(signalling, "send_signal", send_signal)
    with pytest.raises(OSError, match="broken"):
        families.kill_families([who])
    assert exits.wait_gone([child], PATIENCE) == []
    process.kill()


def test_a_whole_family_is_suspended_before_any_of_it_is_killed(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise a process that goes on meanwhile may start a child that nobody knows of."""
    _, who, child = family
    sent: list[tuple[int, int]] = []
    real = signalling.send_signal

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        sent.append((signum, process.pid))
        return real(process, signum)

    monkeypatch.setattr(signalling, "send_signal", send_signal)
    families.kill_families([who])
    signals = [signum for signum, _ in sent]
    killing = signals.index(signal.SIGKILL)
    assert {pid for signum, pid in sent[:killing] if signum == signal.SIGSTOP} >= {who.pid, child.pid}
    # Children are killed first: when a parent dies, the kernel may continue a suspended child.
    assert sent[killing:] == [(signal.SIGKILL, child.pid), (signal.SIGKILL, who.pid)]


def test_a_child_of_a_process_that_dies_while_it_is_being_suspended_is_killed(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For example because its group's leader has ended, and so the kernel sends the group SIGHUP."""
    process, who, child = family

    def stop(_: object) -> list[ProcessIdentity]:
        process.kill()
        process.wait(PATIENCE)
        return []

    monkeypatch.setattr(families, "_stop", stop)
    families.kill_families([who])
    assert exits.wait_gone([child], PATIENCE) == []


def test_a_helper_process_that_is_just_being_started_is_spared(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    answers = iter([False])
    monkeypatch.setattr(family_tree, "_is_housekeeper", lambda _: next(answers, True))
    families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert identity.is_alive(child)
    assert not stat_file.is_stopped(child.pid)


@pytest.mark.usefixtures("patient")
def test_a_process_that_is_continued_meanwhile_is_suspended_again(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel continues processes of a group that it sends SIGHUP, even if they ignore that."""
    _, who, child = family
    really_stop, send, states = families._stop, signalling.send_signal, list[bytes]()
    continued: list[ProcessIdentity] = []

    def stop(processes: list[ProcessIdentity]) -> list[ProcessIdentity]:
        left = really_stop(processes)
        if child in processes and not continued:
            os.kill(child.pid, signal.SIGCONT)
            continued.append(child)
        return left

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        if signum == signal.SIGKILL:
            states.append(stat_file.fields_of(process.pid)[stat_file.STATE])
        return send(process, signum)

    monkeypatch.setattr(families, "_stop", stop)
    monkeypatch.setattr(signalling, "send_signal", send_signal)
    families.kill_families([who])
    assert continued
    assert states == [b"T", b"T"]


@pytest.mark.usefixtures("patient")
def test_a_process_that_is_continued_before_it_has_stopped_is_sent_sigstop_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A SIGSTOP that has not taken effect by then is lost."""
    who, told = ProcessIdentity(1_000_000, 5), list[int]()
    motions = iter([families._MOVING, families._MOVING, families._STILL])
    monkeypatch.setattr(families, "_motion", lambda _: next(motions))
    monkeypatch.setattr(signalling, "send_signal_if_allowed", lambda _, signum: told.append(signum))
    assert families._stop([who]) == []
    assert told == [signal.SIGSTOP] * 3


@pytest.mark.parametrize("where", ["stat", "cmdline"])
def test_an_incomplete_table_of_processes_is_not_used(
    where: str, family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Otherwise a helper process whose command line cannot be read would be killed like any other.
    _, who, child = family

    def no_descriptor_for(path: str, mode: str, buffering: int) -> object:
        if path == f"/proc/{child.pid}/{where}":
            raise OSError(errno.EMFILE, "no descriptor left")
        return open(path, mode, buffering)

    for module in (family_tree, stat_file):
        monkeypatch.setattr(module, "open", no_descriptor_for, raising=False)
    with pytest.raises(OSError, match="no descriptor left"):
        family_tree.descendants([who])


class SlowFork:
    """Imitates a process that is sent SIGSTOP in the middle of a fork, and finishes the fork before it stops.

    Its child, which was sent nothing, is in the table of processes only once the parent has stopped. `held`:
    whether the parent appears to wait inside the kernel until then.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, looks: float, *, held: bool = False) -> None:
        self.parent, self.child = ProcessIdentity(1_000_001, 5), ProcessIdentity(1_000_002, 6)
        self.sent: list[tuple[int, ProcessIdentity]] = []
        self._looks = looks
        self._on_the_way = families._HELD if held else families._MOVING
        monkeypatch.setattr(signalling, "send_signal", self.send)
        monkeypatch.setattr(families, "_motion", self.motion)
        monkeypatch.setattr(family_tree, "_parents", self.table)

    def send(self, process: ProcessIdentity, signum: int) -> bool:
        self.sent.append((signum, process))
        return True

    def motion(self, process: ProcessIdentity) -> int:
        if process == self.parent:
            self._looks -= 1
            if self._looks > 0:
                return self._on_the_way
        return families._STILL

    def table(self) -> dict[int, tuple[int, ProcessIdentity]]:
        found = {self.parent.pid: (1, self.parent)}
        if self._looks <= 0:
            found[self.child.pid] = (self.parent.pid, self.child)
        return found


@pytest.mark.parametrize("held", [False, True], ids=["running", "held"])
def test_a_fork_in_progress_is_waited_for(monkeypatch: pytest.MonkeyPatch, held: bool) -> None:
    scene = SlowFork(monkeypatch, 5, held=held)
    families.kill_families([scene.parent])
    assert (signal.SIGKILL, scene.child) in scene.sent
    assert scene.sent.index((signal.SIGSTOP, scene.child)) < scene.sent.index((signal.SIGKILL, scene.parent))


@pytest.mark.parametrize("held", [False, True], ids=["running", "held"])
def test_a_process_that_never_stops_is_killed_all_the_same(
    monkeypatch: pytest.MonkeyPatch, held: bool
) -> None:
    monkeypatch.setattr(families, "_STOPPING_PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr(families, "_HELD_PATIENCE_SECONDS", 0.01)
    scene = SlowFork(monkeypatch, 1e9, held=held)
    families.kill_families([scene.parent])
    assert scene.sent[-1] == (signal.SIGKILL, scene.parent)


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait long for a process to stop: it needs a core for that, and perhaps pages from a disk."""
    monkeypatch.setattr(families, "_STOPPING_PATIENCE_SECONDS", PATIENCE)
    monkeypatch.setattr(families, "_HELD_PATIENCE_SECONDS", PATIENCE)


@pytest.mark.usefixtures("patient")
def test_when_a_process_counts_as_suspended(family: Family) -> None:
    process, who, _ = family
    assert families._motion(who) != families._STILL
    assert families._stop([who]) == []
    assert families._motion(who) == families._STILL
    process.kill()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert families._motion(who) == families._STILL
    process.wait()
    assert families._motion(who) == families._STILL


@pytest.mark.usefixtures("patient")
def test_every_thread_has_to_be_suspended() -> None:
    code = (
        "import threading, time\n"
        "threading.Thread(target=time.sleep, args=(600,), daemon=True).start()\n"
        "print(1, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        who = identity.of(process.pid)
        assert who is not None
        assert len(os.listdir(f"/proc/{process.pid}/task")) == 2
        assert not stat_file.thread_states(process.pid) & stat_file.NOT_RUNNING
        assert families._stop([who]) == []
        assert stat_file.thread_states(process.pid) == {b"T"}
        process.kill()


_PARENT = """
import subprocess, sys
children = []
for line in sys.stdin:
    command = [sys.executable, "-S", "-c", "print(flush=True); import time; time.sleep(600)", *line.split()]
    child = subprocess.Popen(command, stdout=subprocess.PIPE)
    child.stdout.readline()
    children.append(child)
    print(child.pid, flush=True)
"""


class Parent:
    """A process that starts children when it is told to."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _PARENT],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        who = identity.of(self.process.pid)
        assert who is not None
        self.who = who

    def start(self, *words: str) -> ProcessIdentity:
        """Start a child with these words in its command line."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(" ".join(words) + "\n")
        self.process.stdin.flush()
        child = identity.of(int(self.process.stdout.readline()))
        assert child is not None
        return child

    def later(self) -> ProcessIdentity:
        """Start a child whose start time differs from those of earlier ones."""
        before = self.start()
        while (child := self.start()).started == before.started:
            before = child
        return child


@pytest.fixture
def parent() -> Iterator[Parent]:
    parent = Parent()
    with parent.process:
        yield parent
        os.killpg(parent.process.pid, signal.SIGKILL)


def test_processes_that_were_started_before_are_ignored(parent: Parent) -> None:
    assert family_tree.descendants_since(parent.who, 0) == []
    old, new = parent.start(), parent.later()
    found = family_tree.descendants_since(parent.who, new.started)
    assert new in found
    assert old not in found
    assert family_tree.descendants_since(parent.who, new.started + 10**9) == []
    told = families.signal_families([parent.who], signal.SIGCONT, since=new.started)
    assert told == [parent.who, *found]
    families.kill_families([parent.who], since=new.started)
    assert exits.wait_gone([parent.who, new], PATIENCE) == []
    assert identity.is_alive(old)


def test_the_children_of_a_process(parent: Parent) -> None:
    assert family_tree.children_of(parent.who) == []
    first, housekeeper, last = parent.start(), parent.start(family_tree.HOUSEKEEPERS[0]), parent.start()
    assert family_tree.children_of(parent.who) == [first, last]
    assert family_tree.children_of(parent.who, 1) == [first]
    assert family_tree.children_of(parent.who, threads=1) == [first, last]
    assert family_tree.children_of(parent.who, threads=0) == []
    assert family_tree.children_of(parent.who._replace(started=1)) == []
    os.kill(last.pid, signal.SIGKILL)
    os.kill(housekeeper.pid, signal.SIGKILL)
    assert exits.wait_gone([housekeeper, last], PATIENCE) == []
    assert family_tree.children_of(parent.who) == [first]


@pytest.mark.parametrize(
    "argument", ["multiprocessing.resource_tracker", "src/mpkit/_platform/parent_death/guardian.py"]
)
def test_a_program_that_only_mentions_a_helper_in_its_arguments_is_no_helper(
    parent: Parent, argument: str
) -> None:
    """Otherwise a program that searches for that word would survive the task that started it."""
    searching = parent.start(argument)
    assert family_tree.children_of(parent.who) == [searching]
    assert family_tree.descendants([parent.who]) == [searching]


def test_if_the_system_does_not_list_children(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    child = parent.start()
    monkeypatch.setattr(family_tree, "_child_pids", lambda _pid, _threads=None: None)
    assert family_tree.children_of(parent.who) == []
    assert family_tree.descendants_since(parent.who, 0) == [child]


def test_what_an_older_fork_server_starts_counts(parent: Parent, monkeypatch: pytest.MonkeyPatch) -> None:
    server, new = parent.start("multiprocessing.forkserver"), parent.later()
    assert family_tree.fork_servers_of(parent.who) == [server]
    parents = family_tree._parents()
    # As if the fork server had started it.
    monkeypatch.setattr(family_tree, "_parents", lambda: {**parents, new.pid: (server.pid, new)})
    assert new in family_tree.descendants([parent.who], since=new.started)
    assert server not in family_tree.descendants([parent.who], since=new.started)
