"""The command `doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit.cli import _text
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
        help="check whether this machine is fit for mpkit",
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
            "with --clean: remove it in a container, too, where the living of another one would look dead;"
            " only where nobody else has this /dev/shm and this temporary directory"
        ),
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the findings as they come; 1 if one of them is a problem."""
    if options.clean:
        clean(force=options.force)
    worst = report(finding for check in checks.ALL for finding in check())
    return 1 if worst is Level.PROBLEM else 0


def clean(*, force: bool = False) -> None:
    """Remove the leftovers, and say which; in a container with pids of its own only with `force`."""
    found = leftovers.find()
    if found and not force and not leftovers.sees_every_process():
        print(f"removed none of {_text.counted(len(found), 'file')}: {checks.NEXT_DOOR}")
        return
    for left in leftovers.remove(found):
        print(f"removed {left.path} ({_text.size(left.size_bytes)}, of process {left.pid}, which is dead)")


def report(findings: Iterable[Finding]) -> Level:
    """Print each finding, and return the gravest level."""
    worst = Level.FINE
    order = list(Level)
    for finding in findings:
        worst = max(worst, finding.level, key=order.index)
        print(f"{finding.level.value:<8} {finding.subject:<{_SUBJECT_WIDTH}} {finding.detail}", flush=True)
        if finding.remedy:
            print(f"{'':<8} {'':<{_SUBJECT_WIDTH}} -> {finding.remedy}", flush=True)
    print({Level.FINE: "All is well.", Level.NOTE: "All works.", Level.PROBLEM: "There are problems."}[worst])
    return worst
