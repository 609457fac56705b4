"""`watch`: one process, at regular intervals."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mpkit._platform.threads.deadlines import check_seconds
from mpkit._platform.threads.readiness import LONGEST_WAIT_SECONDS
from mpkit.errors import ProcessGone
from mpkit.introspect._processes import ProcessSnapshot, read, share
from mpkit.introspect._translate import checked_pid, find

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil


def watch(pid: int | None = None, interval: float = 1.0) -> Iterator[ProcessSnapshot]:
    """Look at a process at once and then every `interval` seconds, until it is gone.

    The process is chosen when `watch` is called: the iteration ends when that process is gone, and never
    continues with another one that gets the same pid. A zombie is shown until its parent has waited for it.

    Args:
        pid: The process to look at. None, the default, is the calling process.
        interval: Seconds between snapshots, more than 0. If the consumer is too slow, snapshots are left out.

    Returns:
        An iterator of snapshots. `cpu_percent` is the mean since the previous snapshot; in the first one, the
        mean over the life of the process.

    Raises:
        ProcessGone: There is no such process now.
        AccessDenied: The system does not allow this user to examine it (also from the iterator, if the
            process has become another user's).
        TypeError, ValueError: `pid` or `interval` has the wrong type or is out of range.

    Blocking: the call never blocks. Each step of the iterator but the first one waits until it is time for
    the next snapshot; Ctrl-C ends the wait.
    Safe from: any thread, but only one thread at a time may use an iterator.

    Examples:
        >>> for now in watch(interval=0.01):
        ...     print(now.state)
        ...     break
        running
    """
    seconds = _checked_interval(interval)
    process = find(checked_pid(pid))
    return _looks(process, read(process), seconds)


def _looks(process: psutil.Process, first: ProcessSnapshot, interval: float) -> Iterator[ProcessSnapshot]:
    before, seen_at = first, time.monotonic()
    due = seen_at
    yield before
    while True:
        due = next_moment(due, interval, time.monotonic())
        sleep_until(due)
        try:
            now, now_at = read(process), time.monotonic()
        except ProcessGone:
            return
        cpu_percent = share(now.cpu_s - before.cpu_s, now_at - seen_at)
        before, seen_at = now, now_at
        yield replace(now, cpu_percent=cpu_percent)


def next_moment(due: float, interval: float, now: float) -> float:
    """The first of the moments `due + n * interval` (n >= 1) that has not passed yet."""
    steps = (now - due) / interval
    # If the interval is too small for a float to hold the number of steps, there
    # is such a moment at any time.
    return due + interval * max(1, math.ceil(steps)) if steps < math.inf else now


def sleep_until(due: float) -> None:
    """Sleep until a moment on the clock of `time.monotonic`, however far away it is."""
    while (left := due - time.monotonic()) > 0.0:
        # The system raises an error for very long sleeps.
        time.sleep(min(left, LONGEST_WAIT_SECONDS))


def _checked_interval(interval: float) -> float:
    seconds = check_seconds(interval, name="interval")
    if seconds == 0:
        raise ValueError("interval must be more than 0 seconds; got 0")
    return seconds
