"""`python -m mpkit ps [PID]`: the processes, pools and queues of a program, once."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

from mpkit import introspect
from mpkit.cli import _arguments, _render, _text
from mpkit.introspect import _segments

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "ps",
        help="show a program's processes, pools and queues, once",
        description="Show a process with everything it started, and its pools and queues.",
    )
    parser.add_argument(
        "pid",
        nargs="?",
        type=_arguments.pid,
        metavar="PID",
        help="the process on top; without it, every program of this user that uses mpkit",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the tables; command lines are cut to the width of the terminal, if it is one."""
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    roots = _segments.programs() if options.pid is None else [options.pid]
    if not roots:
        print("No process of this user has an mpkit pool or queue open.")
    for number, pid in enumerate(roots):
        if number:
            print()
        for line in _render.program(introspect.tree(pid), now=time.time()):
            print(_text.shortened(line, width))
    return 0
