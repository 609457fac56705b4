"""Types of command line arguments, and an argument that two commands share."""

from __future__ import annotations

import argparse
import math


def add_program_to(parser: argparse.ArgumentParser) -> None:
    """Declare the argument that says which program to show."""
    parser.add_argument(
        "pid",
        nargs="?",
        type=pid,
        metavar="PID",
        help="the process to show; without it, your programs that have a pool, queue, lock or counter",
    )


def pid(text: str) -> int:
    """Parse a process id."""
    return _whole(text, "a process id (a positive whole number)")


def positive(text: str) -> int:
    """Parse a whole number of at least 1."""
    return _whole(text, "a whole number of at least 1")


def seconds(text: str) -> float:
    """Parse a number of seconds, more than 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def _whole(text: str, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
