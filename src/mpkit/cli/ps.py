"""`python -m mpkit ps [PID]`: the processes, pools and queues of a program, once."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit.cli import _arguments, _output, _programs, _text

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "ps",
        help="show a program's processes, pools and queues, once",
        description="Show a process with everything it started, and its pools and queues.",
    )
    _arguments.add_program_to(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the tables. If the output is a terminal, lines are cut off at its width."""
    width = _output.width()
    shown = 0
    for lines in _programs.look(options.pid):
        if shown:
            _output.show()
        shown += 1
        for line in lines:
            _output.show(_text.shortened(line, width))
    if not shown:
        _output.show(_programs.NONE_FOUND)
    return 0
