"""Whether a process was started before a certain moment. A pool finds the processes of a task in this way."""

from __future__ import annotations

import os
import sys
import time

from mpkit._platform.threads.clock import CLOCK

# How often to read the two clocks at most, until the readings are close enough: if this thread loses its core
# in between, one of them is read too late.
_TRIES = 10
_NEAR_NS = 100_000

if sys.platform == "linux":
    # Start times are in ticks since boot. This clock also counts from boot, and goes on while the machine is
    # suspended.
    _TICKS = os.sysconf("SC_CLK_TCK")

    def _now_ns() -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

    def _started(ns: int) -> int:
        return ns * _TICKS // 1_000_000_000

else:

    def _now_ns() -> int:
        return time.time_ns()

    def _started(ns: int) -> int:
        return ns // 1000


def _gap_ns() -> int:
    """By how many nanoseconds the clock of start times is ahead of the monotonic clock."""
    best = gap = 0
    for _ in range(_TRIES):
        before = CLOCK.monotonic_ns()
        now = _now_ns()
        after = CLOCK.monotonic_ns()
        took = after - before
        if not best or took < best:
            best, gap = took, now - after
        if best < _NEAR_NS:
            break
    return gap


class StartClock:
    """Converts a moment to the unit of `ProcessIdentity.started`.

    The result is exact to one unit (10 ms on Linux). If the machine has been suspended, or (not on Linux) its
    clock has been set, since this object was created, the result may be too early by as much, but never too
    late.
    """

    __slots__ = ("_gap",)

    def __init__(self) -> None:
        self._gap = _gap_ns()

    def at(self, monotonic_ns: int) -> int:
        """The `started` of a process that is started at this moment (on the clock of `time.monotonic_ns`)."""
        return _started(monotonic_ns + min(self._gap, _gap_ns()))
