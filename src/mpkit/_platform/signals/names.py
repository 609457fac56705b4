"""The names of signals, and the one that ends a process."""

from __future__ import annotations

import signal
import sys
from typing import Final

if sys.platform == "win32":
    KILL: Final = signal.SIGTERM
    """The signal that ends a process at once; on Windows SIGTERM does."""
else:
    KILL: Final = signal.SIGKILL
    """The signal that ends a process at once."""


def signal_name(exitcode: int | None) -> str | None:
    """The name of the signal that an exit code stands for.

    Args:
        exitcode: As in `multiprocessing.Process.exitcode`: negative when a signal ended the process.

    Returns:
        Such as ``"SIGSEGV"`` (or ``"signal 40"`` for a signal without a name); None if no signal ended it.
    """
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        # Real-time signals between the first and the last have no name.
        return f"signal {-exitcode}"


def how_it_ended(exitcode: int | None) -> str:
    """How a process ended, as text for people; None: the exit code is not known."""
    if exitcode is None:
        return "died"
    name = signal_name(exitcode)
    return f"ended with exit code {exitcode}" if name is None else f"was killed by {name}"
