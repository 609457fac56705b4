"""The names of signals."""

from __future__ import annotations

import signal

__all__ = ["signal_name"]


def signal_name(exitcode: int | None) -> str | None:
    """The name of the signal that an exit code stands for.

    Args:
        exitcode: As in `multiprocessing.Process.exitcode`: negative when a signal ended the process.

    Returns:
        Such as ``"SIGSEGV"`` (``"signal 40"`` for one without a name), or None when no signal did.
    """
    if exitcode is None or exitcode >= 0:
        return None
    try:
        return signal.Signals(-exitcode).name
    except ValueError:
        # Real-time signals between the first and the last have no name.
        return f"signal {-exitcode}"
