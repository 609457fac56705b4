"""What `doctor` finds, and what it reports about it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest

from mpkit.cli.doctor import checks, command, leftovers
from mpkit.cli.doctor.finding import Finding, Level, fine, note, problem
from mpkit.introspect import _segments


@pytest.mark.parametrize(
    "findings, level, last",
    [
        ([], Level.FINE, "All is well."),
        ([fine("a", "b"), note("c", "d", "e")], Level.NOTE, "All works."),
        ([problem("a", "b", "c"), fine("d", "e")], Level.PROBLEM, "There are problems."),
    ],
)
def test_the_most_serious_finding_decides_the_outcome(
    findings: Iterable[Finding], level: Level, last: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.report(findings) is level
    assert capsys.readouterr().out.splitlines()[-1] == last


def test_a_remedy_stands_under_its_finding(capsys: pytest.CaptureFixture[str]) -> None:
    command.report([problem("open files", "at most 3", "ulimit -n 4096")])
    first, second, _ = capsys.readouterr().out.splitlines()
    assert first.split() == ["PROBLEM", "open", "files", "at", "most", "3"]
    assert second.split() == ["->", "ulimit", "-n", "4096"]


def space(total: int, free: int) -> Any:
    return lambda _path: SimpleNamespace(f_blocks=total, f_frsize=1, f_bavail=free)


@pytest.mark.skipif(not os.path.isdir("/dev/shm"), reason="only where there is /dev/shm")
@pytest.mark.parametrize(
    "total, free, level",
    [
        (2**30, 2**29, Level.FINE),
        (2**26, 2**26, Level.NOTE),
        (2**30, 2**20, Level.PROBLEM),
    ],
)
def test_little_shared_memory_is_told(
    total: int, free: int, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "statvfs", space(total, free))
    assert next(iter(checks.shared_memory())).level is level


@pytest.mark.skipif(os.name != "posix", reason="only POSIX has these limits")
@pytest.mark.parametrize("files, level", [(64, Level.PROBLEM), (1024, Level.FINE), (None, Level.FINE)])
def test_few_open_files_are_a_problem(
    files: int | None, level: Level, monkeypatch: pytest.MonkeyPatch
) -> None:
    import resource

    # None stands for "no limit", which is not the same number in every Python.
    limit = resource.RLIM_INFINITY if files is None else files
    monkeypatch.setattr("resource.getrlimit", lambda _which: (limit, limit))
    assert next(iter(checks.limits())).level is level


def test_a_quota_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(checks, "usable_cpus", lambda: 2)
    (finding,) = checks.cpus()
    assert finding.level is Level.NOTE
    assert "2 usable of 64" in finding.detail


@pytest.fixture
def on_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend not to be in a container, wherever the tests run."""
    monkeypatch.setattr(leftovers, "sees_every_process", lambda: True)


@pytest.mark.usefixtures("on_the_host")
def test_what_was_left_behind_is_a_problem_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "find", lambda: [leftovers.Leftover("/dev/shm/x", 2048, 5)])
    monkeypatch.setattr(_segments, "other_trackers", list)
    (finding,) = checks.left_behind()
    assert finding.level is Level.PROBLEM
    assert "--clean" in finding.remedy


@pytest.mark.usefixtures("on_the_host")
def test_what_a_running_program_may_remove_is_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "find", lambda: [leftovers.Leftover("/dev/shm/x", 2048, 5)])
    monkeypatch.setattr(_segments, "other_trackers", lambda: [7])
    (finding,) = checks.left_behind()
    assert finding.level is Level.NOTE


def test_an_extra_may_be_missing() -> None:
    findings = list(checks.packages())
    assert {finding.level for finding in findings} == {Level.FINE}
    assert [finding.subject for finding in findings] == [
        "mpkit",
        "psutil",
        "extra cloudpickle",
        "extra progress",
        "extra top",
    ]


def test_this_python_is_known() -> None:
    (finding,) = checks.python()
    assert finding.level is not Level.PROBLEM
    assert "CPython" in finding.detail


def test_in_a_container_what_looks_left_behind_may_be_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "find", lambda: [leftovers.Leftover("/dev/shm/x", 2048, 5)])
    monkeypatch.setattr(leftovers, "sees_every_process", lambda: False)
    (finding,) = checks.left_behind()
    assert finding.level is Level.NOTE
    assert "--force" in finding.remedy


def test_clean_removes_nothing_in_a_container_unless_forced(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = leftovers.Leftover("/dev/shm/mpkit-x", 2048, 5)
    removed: list[leftovers.Leftover] = []

    def remove(found: list[leftovers.Leftover]) -> list[leftovers.Leftover]:
        removed.extend(found)
        return found

    monkeypatch.setattr(leftovers, "find", lambda: [left])
    monkeypatch.setattr(leftovers, "remove", remove)
    monkeypatch.setattr(leftovers, "sees_every_process", lambda: False)
    command.clean()
    assert removed == []
    assert capsys.readouterr().out.startswith("removed none of 1 file: seen from this container")
    command.clean(force=True)
    assert removed == [left]


@pytest.mark.usefixtures("on_the_host")
def test_clean_says_what_it_removed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = leftovers.Leftover("/dev/shm/mpkit-x", 2048, 5)
    monkeypatch.setattr(leftovers, "find", lambda: [left])
    monkeypatch.setattr(leftovers, "remove", lambda found: found)
    command.clean()
    assert capsys.readouterr().out == "removed /dev/shm/mpkit-x (2.0 KiB, of process 5, which is dead)\n"


def test_an_error_does_nothing_to_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    command.report([problem("shared memory", "no room in /tmp/\x1b[31m", "remove \x07")])
    assert "\x1b" not in (out := capsys.readouterr().out)
    assert r"no room in /tmp/\x1b[31m" in out
    assert r"remove \x07" in out
