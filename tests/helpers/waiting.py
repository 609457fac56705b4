"""Wait for a condition, with a deadline so far away that only a hang reaches it."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["PATIENCE", "wait_until"]

#: Seconds. Long, because a slow machine must not fail a test. No test should need it to run out.
PATIENCE = 60.0


def wait_until(condition: Callable[[], object], what: str, *, timeout: float = PATIENCE) -> None:
    """Return once `condition()` is true; fail, naming `what`, if it is not within `timeout` seconds.

    For states without an event to wait for (a file that disappears, a process that another one reaps). Where
    there is a queue, a pipe or a sentinel, wait for that instead.
    """
    deadline = time.monotonic() + timeout
    pause = 0.001
    while not condition():
        if time.monotonic() >= deadline:
            raise AssertionError(f"waited {timeout:g} s in vain until {what}")
        time.sleep(pause)
        pause = min(pause * 2, 0.05)
