"""Types of command line arguments."""

from __future__ import annotations

import argparse
import math


def pid(text: str) -> int:
    """A process id."""
    return _whole(text, at_least=1, what="a process id (a positive whole number)")


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _whole(text, at_least=1, what="a whole number of at least 1")


def seconds(text: str) -> float:
    """A length of time, more than 0."""
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return number


def _whole(text: str, *, at_least: int, what: str) -> int:
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise argparse.ArgumentTypeError(f"{text!r} is not {what}")
    return number
