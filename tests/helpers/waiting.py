"""Waiting for an event, with a deadline so far away that only a hang reaches it."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "wait_until"]

#: Seconds. Long, because a loaded machine is no failure; a test that needs it to run out is a slow test.
PATIENCE = 60.0


def wait_until(condition: Callable[[], object], what: str, *, timeout: float = PATIENCE) -> None:
    """Return once `condition()` is true; fail, naming `what`, when it is not within `timeout` seconds.

    For states without an event to wait for (a file that goes, a process that is reaped by another). Where
    there is a queue, a pipe or a sentinel, wait for that instead.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
