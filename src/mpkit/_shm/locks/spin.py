"""Spinning: looking repeatedly before going to sleep, and for how long that pays.

Waking a sleeping process costs 25 to 50 microseconds in a virtual machine; a partner that is running on
another core answers sooner. So a waiting process first spins for about as long as a wake-up would take; less
and less, if that has not paid off lately; and not at all if there is only one usable CPU, where it would keep
the partner from running.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK

#: The number of looks in the longest spin, and in the shortest. A look takes 60 to 90 ns, so the longest spin
#: takes about 50 microseconds.
MOST_LOOKS = 700
_FEWEST_LOOKS = 24
#: After a sleep that was shorter than this, spinning longer would have been better.
_SHORT_SLEEP_SECONDS = 0.0002


@functools.cache
def _has_several_cpus() -> bool:
    # Cached, because it reads the files of the control groups, which takes longer than creating a queue.
    from mpkit._platform.resources.cpus import usable_cpus  # noqa: PLC0415  few processes ever wait

    return usable_cpus() > 1


class SpinBudget:
    """How many looks the next spin may take: doubled after a successful spin, halved after one in vain."""

    __slots__ = ("looks",)

    def __init__(self) -> None:
        self.looks = MOST_LOOKS if _has_several_cpus() else 0

    def paid(self) -> None:
        """A spin was successful, or would have been if it had been longer."""
        self.looks = min(self.looks * 2, MOST_LOOKS)

    def failed(self) -> None:
        """A spin was in vain."""
        if self.looks:
            self.looks = max(self.looks // 2, _FEWEST_LOOKS)

    def sleep(self, sleep: Callable[[float | None], bool], deadline: float | None) -> bool:
        """Call `sleep` with the deadline; if that was short, the next spin may be longer again."""
        begun = CLOCK.monotonic()
        woken = sleep(deadline)
        if woken and CLOCK.monotonic() - begun < _SHORT_SLEEP_SECONDS:
            self.paid()
        return woken
