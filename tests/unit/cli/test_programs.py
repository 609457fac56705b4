"""Which programs `ps` and `top` show, when some end or may not be looked at."""

from __future__ import annotations

import os
import time
from itertools import islice
from types import SimpleNamespace

import pytest

from mpkit import introspect
from mpkit.cli import _programs, top
from mpkit.cli.main import main
from mpkit.errors import AccessDenied
from mpkit.introspect import ProcessTree, _segments, _watch

# Larger than any pid of Linux.
ENDED = 2**22 + 1
DENIED = 1


@pytest.fixture(autouse=True)
def _one_is_denied(monkeypatch: pytest.MonkeyPatch) -> None:
    look = introspect.tree

    def tree(pid: int) -> ProcessTree:
        if pid == DENIED:
            raise AccessDenied(pid=pid)
        return look(pid)

    monkeypatch.setattr(introspect, "tree", tree)


@pytest.fixture
def several(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three programs are listed: one that has ended since, one that may not be examined, and this one."""
    monkeypatch.setattr(_segments, "programs", lambda: [ENDED, DENIED, os.getpid()])


@pytest.mark.usefixtures("several")
def test_ps_leaves_out_what_has_ended_and_says_what_is_denied(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ps"]) == 0
    out, err = capsys.readouterr()
    denied, blank, headings, mine, *_ = out.splitlines()
    assert denied == f"process {DENIED} may not be examined by this user; run as its owner or as root"
    assert blank == ""
    assert headings.endswith("COMMAND")
    assert mine.split()[0] == str(os.getpid())
    assert err == ""


@pytest.mark.usefixtures("several")
def test_top_goes_on_when_one_of_several_ends() -> None:
    for page in top._pages(None, 0.001, 2):
        assert str(ENDED) not in page
        assert f"process {DENIED} may not be examined" in page
        assert "COMMAND" in page


def test_top_accepts_an_interval_of_centuries(monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()

    def sleep(seconds: float) -> None:
        nonlocal now
        # About the longest time that a system call accepts, in 32 bits.
        assert seconds < 2**31 / 1000
        now += seconds

    monkeypatch.setattr(_watch, "time", SimpleNamespace(monotonic=lambda: now, sleep=sleep))
    began = now
    assert len(list(top._pages(os.getpid(), 1e10, 2))) == 2
    assert now - began >= 1e10


def test_when_all_programs_have_ended_that_is_said(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(_segments, "programs", lambda: [ENDED])
    assert main(["ps"]) == 0
    assert capsys.readouterr().out == f"{_programs.NONE_FOUND}\n"
    assert list(islice(top._pages(None, 0.001, None), 2)) == [_programs.NONE_FOUND] * 2


@pytest.mark.parametrize("command", [["ps"], ["top", "--plain"]], ids=["ps", "top"])
@pytest.mark.parametrize(
    "pid, reason", [(ENDED, "does not exist (any more)"), (DENIED, "may not be examined by this user")]
)
def test_a_program_that_was_asked_for_must_exist(
    command: list[str], pid: int, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, str(pid)]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"mpkit {command[0]}: process {pid} {reason}")


def test_a_program_whose_parents_may_not_be_examined_is_a_root(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    def refuse(_process: psutil.Process) -> list[psutil.Process]:
        raise psutil.AccessDenied(DENIED)

    me = psutil.Process()
    monkeypatch.setattr(_segments, "users", lambda: {"a file": [me]})
    monkeypatch.setattr(psutil.Process, "parents", refuse)
    assert _segments.programs() == [me.pid]
