"""`mpkit._platform.families`: what is stopped is killed, whatever happens in between."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress

import pytest

from mpkit._platform import families, identity, stat_file
from mpkit._platform.identity import ProcessIdentity
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc, and stops processes")


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[bytes], ProcessIdentity, int]]:
    """A process with a child: the process, its identity, the pid of the child."""
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen(['sleep', '600'])\n"
        "print(child.pid, flush=True)\n"
        "child.wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    who = identity.of(process.pid)
    assert who is not None
    yield process, who, child
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(PATIENCE)
    process.stdout.close()


def no_descriptor(times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table of processes cannot be read, the first `times`."""
    real, failures = os.listdir, iter(range(times))

    def listdir(path: str = ".") -> list[str]:
        if path == "/proc" and next(failures, None) is not None:
            raise OSError(errno.EMFILE, "no descriptor left")
        return real(path)

    monkeypatch.setattr(os, "listdir", listdir)


def test_without_a_descriptor_the_roots_are_killed(
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, _ = family
    no_descriptor(1_000_000, monkeypatch)
    families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert families.with_descendants([who]) == [who]


def test_a_lack_that_passes_hides_nobody(
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    its_child = identity.of(child)
    assert its_child is not None
    no_descriptor(1, monkeypatch)
    assert families.with_descendants([who]) == [who, its_child]
    no_descriptor(1, monkeypatch)
    families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert families.wait_gone([its_child], PATIENCE) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError, OSError(errno.EIO, "broken")])
def test_whatever_comes_between_stopping_and_killing(
    error: type[BaseException] | BaseException,
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    process, who, _ = family

    def raising() -> dict[int, tuple[int, ProcessIdentity]]:
        raise error

    monkeypatch.setattr(families, "_parents", raising)
    with pytest.raises(error if isinstance(error, type) else type(error)):
        families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL


def test_an_interrupt_among_the_kills_spares_nobody(
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    its_child = identity.of(child)
    assert its_child is not None
    real, interrupts = families.send_signal, iter([KeyboardInterrupt, KeyboardInterrupt])

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        if signum == signal.SIGKILL:
            for interrupt in interrupts:
                raise interrupt
        return real(process, signum)

    monkeypatch.setattr(families, "send_signal", send_signal)
    with pytest.raises(KeyboardInterrupt):
        families.kill_families([who])
    assert process.wait(PATIENCE) == -signal.SIGKILL
    assert families.wait_gone([its_child], PATIENCE) == []


def test_one_that_cannot_be_signalled_does_not_save_the_others(
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    process, who, child = family
    its_child = identity.of(child)
    assert its_child is not None
    real = families.send_signal

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        if signum == signal.SIGKILL and process == who:
            raise OSError(errno.EIO, "broken")
        return real(process, signum)

    monkeypatch.setattr(families, "send_signal", send_signal)
    with pytest.raises(OSError, match="broken"):
        families.kill_families([who])
    assert families.wait_gone([its_child], PATIENCE) == []
    process.kill()


def test_a_family_is_stopped_before_any_of_it_is_killed(
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one that goes on meanwhile may start a child that nobody knows of."""
    _, who, child = family
    sent: list[tuple[int, int]] = []
    real = families.send_signal

    def send_signal(process: ProcessIdentity, signum: int) -> bool:
        sent.append((signum, process.pid))
        return real(process, signum)

    monkeypatch.setattr(families, "send_signal", send_signal)
    families.kill_families([who])
    signals = [signum for signum, _ in sent]
    killing = signals.index(signal.SIGKILL)
    assert {pid for signum, pid in sent[:killing] if signum == signal.SIGSTOP} >= {who.pid, child}
    assert {pid for _, pid in sent[killing:]} >= {who.pid, child}
    assert signal.SIGSTOP not in signals[killing:]


@pytest.mark.parametrize("where", ["stat", "cmdline"])
def test_a_table_with_holes_is_none(
    where: str,
    family: tuple[subprocess.Popen[bytes], ProcessIdentity, int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A housekeeper whose command line cannot be read would be killed as anybody else.
    _, who, child = family

    def no_descriptor_for(path: str, mode: str, buffering: int) -> object:
        if path == f"/proc/{child}/{where}":
            raise OSError(errno.EMFILE, "no descriptor left")
        return open(path, mode, buffering)

    for module in (families, stat_file):
        monkeypatch.setattr(module, "open", no_descriptor_for, raising=False)
    with pytest.raises(OSError, match="no descriptor left"):
        families.descendants([who])
