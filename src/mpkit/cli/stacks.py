"""`python -m mpkit stacks PID`: what the workers of a pool are executing at this moment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit.cli import _arguments, _output, _text
from mpkit.introspect import _stacks

if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "stacks",
        help="show the Python stack of a pool's worker, or of all workers of a program",
        description=(
            "Show the Python stack of every thread of a worker of an mpkit pool, or of all workers under"
            " a process. This works even while C code holds the interpreter lock, and needs no debugger"
            " permissions."
        ),
    )
    parser.add_argument(
        "pid", type=_arguments.pid, metavar="PID", help="a pool worker, or a process that has some below it"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Print the stacks; returns 1 if there is none."""
    workers = _stacks.workers_under(options.pid)
    if not workers:
        _output.complain(
            f"mpkit stacks: process {options.pid} is not a worker of an mpkit pool and has none below it;"
            " only pool workers write their stack on request"
        )
        return 1
    shown = 0
    for worker, answer in zip(workers, _stacks.stacks_of(workers), strict=True):
        # Or an error: the worker has ended meanwhile, or belongs to another user now.
        text = answer if isinstance(answer, str) else str(answer.strerror)
        shown += bool(text)
        _output.show(f"--- worker {worker.process.pid}, {worker.row.state} ---")
        _output.show(_text.visible_lines(text) or "it does not answer: it is stopped, or just starting")
    return 0 if shown else 1
