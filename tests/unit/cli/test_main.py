"""The command line as a whole: which arguments it accepts, and how it reports errors."""

from __future__ import annotations

import argparse
from collections.abc import Callable

import pytest

import mpkit
from mpkit._platform.processes import identity
from mpkit.cli import _arguments, ps
from mpkit.cli.main import main
from mpkit.errors import ProcessGone


@pytest.mark.parametrize("command", ["ps", "top", "stacks", "demo", "doctor"])
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([command, "--help"])
    assert ended.value.code == 0
    assert f"usage: mpkit {command}" in capsys.readouterr().out


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"mpkit {mpkit.__version__}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["ps", "zero"],
        ["ps", "0"],
        ["stacks"],
        ["stacks", "-5"],
        ["top", "--interval", "0"],
        ["top", "--interval", "nan"],
        ["top", "--count", "0"],
        ["demo", "--processes", "0"],
        ["doctor", "extra"],
        ["doctor", "--force"],
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert "usage: mpkit" in capsys.readouterr().err


def test_without_a_command_it_says_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    for command in ("ps", "top", "stacks", "demo", "doctor"):
        assert f"\n    {command} " in shown.err


@pytest.mark.parametrize("check", [_arguments.pid, _arguments.positive, _arguments.seconds])
def test_an_argument_that_does_not_fit_is_named(check: Callable[[str], float]) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'x'"):
        check("x")


def _raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def run(_options: argparse.Namespace) -> int:
        raise error

    return run


def test_an_error_of_mpkit_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(ps, "run", _raising(ProcessGone(pid=12345)))
    assert main(["ps"]) == 1
    assert capsys.readouterr().err == "mpkit ps: process 12345 does not exist (any more)\n"


def test_a_machine_without_a_process_table_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def not_mounted() -> None:
        raise RuntimeError("is /proc mounted?")

    monkeypatch.setattr(identity, "current", not_mounted)
    assert main(["ps"]) == 1
    assert capsys.readouterr().err == "mpkit ps: is /proc mounted?\n"


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(ps, "run", _raising(KeyboardInterrupt()))
    assert main(["ps"]) == 130
    assert capsys.readouterr().err == ""


def test_any_other_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ps, "run", _raising(ZeroDivisionError()))
    with pytest.raises(ZeroDivisionError):
        main(["ps"])
