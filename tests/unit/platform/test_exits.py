"""`mpkit._platform.processes.exits`, and what signals a process: where the system refuses something."""

from __future__ import annotations

import errno
import os
import signal
import sys

import pytest

from mpkit._platform.processes import identity, signalling
from mpkit._platform.processes.exits import ExitWatcher
from tests.helpers.shortage import open_descriptors
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="process descriptors")


class WithoutMemory:
    """As `select.poll()`, but what is registered finds no room."""

    def register(self, descriptor: int, events: int) -> None:
        raise MemoryError("none left")

    def unregister(self, descriptor: int) -> None:
        raise KeyError(descriptor)


def test_what_could_not_be_watched_is_given_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """`close` raised a KeyError in its turn: the descriptor stayed open, and the workers of a pool ran on."""
    before = open_descriptors()
    watcher = ExitWatcher()
    monkeypatch.setattr(watcher._source, "_poll", WithoutMemory())
    with pytest.raises(MemoryError, match="none left"):
        watcher.add(identity.current())
    watcher.close()
    assert open_descriptors() == before


def test_what_has_ended_or_was_discarded_is_not_watched_any_more() -> None:
    """A program that runs for months starts many processes."""
    pid = os.fork()
    if not pid:
        signal.pause()
    child = identity.of(pid)
    assert child is not None
    watcher = ExitWatcher()
    assert watcher.add(identity.current())
    assert watcher.add(child)
    os.kill(pid, signal.SIGKILL)
    ended, _ = watcher.wait(PATIENCE)
    assert ended == {child}
    assert len(watcher) == 1
    watcher.discard(identity.current())
    assert len(watcher) == 0
    watcher.close()
    os.waitpid(pid, 0)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EPERM])
def test_a_sandbox_that_knows_only_the_older_call(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing could be stopped there under forkserver: `stop` waited for ever."""

    def refuse(descriptor: int, signum: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(signal, "pidfd_send_signal", refuse)
    pid = os.fork()
    if not pid:
        signal.pause()
    child = identity.of(pid)
    assert child is not None
    assert signalling.send_signal(child, signal.SIGKILL)
    assert os.waitpid(pid, 0)[1] == signal.SIGKILL
    assert not signalling.send_signal(child, signal.SIGKILL)
