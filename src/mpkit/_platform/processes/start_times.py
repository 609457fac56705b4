"""Whether a process was started before a certain moment: so a pool tells what its task has started from the
rest.
"""

from __future__ import annotations

import os
import sys
import time

from mpkit._platform.threads.clock import CLOCK

__all__ = ["StartClock"]

# How often the two clocks are read at most, and how near to each other that has to be: whoever loses its core
# in between reads one of them too late.
_TRIES = 10
_NEAR_NS = 100_000

if sys.platform == "linux":
    # Since boot, in ticks; this clock counts from there, too, and goes on while the machine is suspended.
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
    """How far that clock is ahead of the monotonic one."""
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
    """Tells what a process that starts at a given moment has as `ProcessIdentity.started`.

    Exact to one unit of that (10 ms on Linux). If the machine has been suspended, or (not on Linux) its clock
    set, since this object was made, what it tells may be too early by so much, and never too late.
    """

    __slots__ = ("_gap",)

    def __init__(self) -> None:
        self._gap = _gap_ns()

    def at(self, monotonic_ns: int) -> int:
        """For the moment that `time.monotonic_ns` has told as this number."""
        return _started(monotonic_ns + min(self._gap, _gap_ns()))
