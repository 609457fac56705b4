"""What `stacks` prints about workers that do not answer."""

from __future__ import annotations

import socket
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mpkit.cli.main import main
from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect import _pools, _stacks


def test_each_worker_is_shown_even_if_others_do_not_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers: dict[int, str | Exception] = {
        1: ProcessGone(pid=1),
        2: AccessDenied(pid=2),
        3: "File \x1b[31m.py\nline 2\n",
    }

    workers = [
        SimpleNamespace(process=SimpleNamespace(pid=pid), row=SimpleNamespace(state="running"))
        for pid in answers
    ]
    monkeypatch.setattr(_stacks, "workers_under", lambda _pid: workers)
    monkeypatch.setattr(_stacks, "stacks_of", lambda _workers: list(answers.values()))
    assert main(["stacks", "5"]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines() == [
        "--- worker 1, running ---",
        "process 1 does not exist (any more)",
        "--- worker 2, running ---",
        "process 2 may not be examined by this user; run as its owner or as root",
        "--- worker 3, running ---",
        r"File \x1b[31m.py",
        "line 2",
        "",
    ]
    assert err == ""


@pytest.mark.skipif(sys.platform != "linux", reason="pipes can be opened from outside on Linux only")
def test_one_that_names_a_socket_as_its_pipe_is_no_worker_of_ours() -> None:
    """Any user may; the others are shown all the same."""
    with socket.socket() as other:
        row: Any = SimpleNamespace(stack_pipe=other.fileno())
        (answer,) = _stacks.stacks_of([_pools.FoundWorker(psutil.Process(), row)])
    assert isinstance(answer, ProcessGone)
