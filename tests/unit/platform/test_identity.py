"""`mpkit._platform.processes.identity`: a pid together with the start time of its process."""

from __future__ import annotations

import errno
import os
import pickle
import signal
import sys

import pytest

from mpkit._platform.processes import identity, stat_file
from mpkit._platform.processes.identity import ProcessIdentity


def test_current_is_this_process_and_does_not_change() -> None:
    me = identity.current()
    assert me.pid == os.getpid()
    assert identity.current() is me
    assert identity.of(os.getpid()) == me


def test_alive_until_the_start_differs() -> None:
    me = identity.current()
    assert identity.is_alive(me)
    assert not identity.is_alive(me._replace(started=me.started + 1))


def test_no_such_process() -> None:
    # Larger than any pid.
    assert identity.of(2**30) is None
    assert not identity.is_alive(ProcessIdentity(2**30, 1))


def test_an_identity_can_be_pickled() -> None:
    me = identity.current()
    assert pickle.loads(pickle.dumps(me)) == me


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("state, alive", [("Z", False), ("X", False), ("T", True), ("R", True), ("D", True)])
def test_a_zombie_is_dead_and_a_stopped_process_alive(
    state: str, alive: bool, monkeypatch: pytest.MonkeyPatch, tmp_path: object
) -> None:
    path = os.path.join(str(tmp_path), "stat")
    with open(path, "w") as file:
        # A command name that looks like the fields after it.
        file.write(f"77 (a) Z 1 (b) {state} 1 77 77 0 -1 4194304 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9\n")
    _redirect_open(monkeypatch, "/proc/77/stat", path)
    assert identity.is_alive(ProcessIdentity(77, 4242)) is alive
    assert identity.of(77) == (ProcessIdentity(77, 4242) if alive else None)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_may_not_be_examined_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "hidden")

    monkeypatch.setattr(stat_file, "open", refuse, raising=False)
    assert identity.is_alive(ProcessIdentity(77, 4242))
    assert identity.of(77) is None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_process_that_proc_does_not_show_counts_as_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    """With hidepid=2, /proc hides processes of other users. Their locks must not be taken over."""

    def hide(_path: str, *_args: object, **_kwargs: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "hidden")

    monkeypatch.setattr(stat_file, "open", hide, raising=False)
    assert identity.is_alive(ProcessIdentity(os.getppid(), 4242))
    assert identity.of(os.getppid()) is None
    assert not identity.is_alive(ProcessIdentity(2**22 + 1, 4242))


@pytest.fixture
def without_descriptor(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_descriptor(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EMFILE, "no descriptor left")

    monkeypatch.setattr(stat_file, "open", no_descriptor, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("without_descriptor")
def test_without_a_descriptor_the_identity_is_unknown() -> None:
    assert identity.of(os.getpid()) is None
    with pytest.raises(OSError, match="no descriptor left"):
        identity.look(os.getpid())
    # It might be another process with the same pid.
    assert identity.is_alive(ProcessIdentity(os.getpid(), 4242))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.usefixtures("without_descriptor")
def test_the_end_of_a_process_is_seen_without_a_descriptor() -> None:
    pid = os.fork()
    if not pid:
        signal.pause()
    child = ProcessIdentity(pid, 4242)
    assert identity.is_alive(child)
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert not identity.is_alive(child), "a zombie"
    # The process can still be reaped by its parent.
    assert os.waitpid(pid, 0) == (pid, signal.SIGKILL)
    assert not identity.is_alive(child), "gone"
    assert not identity.is_alive(ProcessIdentity(2**30, 1))


def _redirect_open(monkeypatch: pytest.MonkeyPatch, asked: str, answer: str) -> None:
    def stand_in(path: str, mode: str, buffering: int) -> object:
        assert path == asked
        return open(answer, mode, buffering)

    monkeypatch.setattr(stat_file, "open", stand_in, raising=False)


@pytest.mark.skipif(sys.platform != "linux", reason="only there is /proc asked")
def test_the_proc_of_another_pid_namespace_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """There, our pids belong to other processes, so the lock of a dead process would never be taken over."""
    monkeypatch.setattr(identity, "_current", None)
    monkeypatch.setattr(os, "readlink", lambda _path: str(os.getpid() + 1))
    with pytest.raises(RuntimeError, match="pid namespace"):
        identity.current()
