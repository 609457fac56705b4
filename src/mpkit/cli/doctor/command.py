"""The command `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit.cli import _output, _text
from mpkit.cli.doctor import checks, leftovers
from mpkit.cli.doctor.finding import Finding, Level

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable

_SUBJECT_WIDTH = 24


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "doctor",
        help="check whether mpkit can work on this machine",
        description=(
            "Check this machine and look for what dead processes left behind. Exit code 1 if there is"
            " a problem."
        ),
    )
    parser.add_argument(
        "--clean", action="store_true", help="remove what dead processes of this user left behind"
    )
    parser.add_argument(
        "--force",
        action="store_true",
        help=(
            "with --clean: remove it inside a container too. Processes of other containers look dead there,"
            " so use it only if no other container shares this /dev/shm and temporary directory"
        ),
    )
    parser.set_defaults(run=run, refuse=parser.error)


def run(options: argparse.Namespace) -> int:
    """Print the findings as they come; returns 1 if any of them is a problem."""
    if options.force and not options.clean:
        options.refuse("--force does nothing without --clean")
    if options.clean:
        clean(force=options.force)
    worst = report(finding for check in checks.ALL for finding in check())
    return 1 if worst is Level.PROBLEM else 0


def clean(*, force: bool = False) -> None:
    """Remove the leftovers, and print their names. In a container with its own pids, only with `force`."""
    found = leftovers.find()
    if found and not force and not leftovers.sees_every_process():
        _output.show(f"removed none of {_text.counted(len(found), 'file')}: {checks.NEXT_DOOR}")
        return
    for left in leftovers.remove(found):
        size = _text.size(left.size_bytes)
        _output.show(f"removed {_text.visible(left.path)} ({size}, of process {left.pid}, which is dead)")


def report(findings: Iterable[Finding]) -> Level:
    """Print each finding, and return the most serious level."""
    worst = Level.FINE
    order = list(Level)
    for finding in findings:
        worst = max(worst, finding.level, key=order.index)
        _show(finding.level.value, finding.subject, finding.detail)
        if finding.remedy:
            _show("", "", f"-> {finding.remedy}")
    verdict = {Level.FINE: "All is well.", Level.NOTE: "All works.", Level.PROBLEM: "There are problems."}
    _output.show(verdict[worst])
    return worst


def _show(level: str, subject: str, text: str) -> None:
    # The text may contain that of an error, and so anything.
    _output.show(f"{level:<8} {subject:<{_SUBJECT_WIDTH}} {_text.visible_lines(text)}", flush=True)
