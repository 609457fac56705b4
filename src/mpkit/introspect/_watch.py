"""`watch`: one process again and again."""

from __future__ import annotations

import math
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from mpkit._platform.threads.deadlines import check_seconds
from mpkit._platform.threads.readiness import LONGEST_WAIT_S
from mpkit.errors import ProcessGone
from mpkit.introspect._processes import ProcessSnapshot, read, share
from mpkit.introspect._translate import checked_pid, find

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil


def watch(pid: int | None = None, interval: float = 1.0) -> Iterator[ProcessSnapshot]:
    """Look at a process immediately and then every `interval` seconds, until it is gone.

    The process is chosen when `watch` is called: the iteration ends when that process is gone, and never
    continues with another one that got the same pid. A zombie is shown until its parent has waited for it.

    Args:
        pid: the process to look at. None, the default, is the calling process.
        interval: seconds between snapshots, more than 0. Snapshots that the consumer was too slow for are
            skipped, not made up for.

    Returns:
        An iterator of snapshots. `cpu_percent` is the mean since the previous snapshot; in the first one, the
        mean over the life of the process.

    Raises:
        ProcessGone: there is no such process now.
        AccessDenied: the system does not allow this user to examine it.
        TypeError, ValueError: `pid` or `interval` has the wrong type or is out of range.

    Blocking: each step but the first waits for its time; Ctrl-C ends the wait.
    Safe from: any thread; one iterator belongs to one thread.

    Examples:
        >>> for picture in watch(interval=0.01):
        ...     print(picture.state)
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
        before, seen_at, elapsed, used = now, now_at, now_at - seen_at, now.cpu_s - before.cpu_s
        yield replace(now, cpu_percent=share(used, elapsed))


def next_moment(due: float, interval: float, now: float) -> float:
    """The first moment of the grid `due + n * interval` (n >= 1) that has not passed yet."""
    steps = (now - due) / interval
    # A grid that is finer than numbers can tell has a moment at any time.
    return due + interval * max(1, math.ceil(steps)) if steps < math.inf else now


def sleep_until(due: float) -> None:
    """Wait for a moment on the monotonic clock, however far away it is.

    A look is due at a moment, not at an event: here sleeping is the thing itself.
    """
    while (left := due - time.monotonic()) > 0.0:
        # The system refuses to sleep for very long at once.
        time.sleep(min(left, LONGEST_WAIT_S))


def _checked_interval(interval: float) -> float:
    seconds = check_seconds(interval, name="interval")
    if seconds == 0:
        raise ValueError("interval must be more than 0 seconds; got 0")
    return seconds
