"""How long it pays to look again and again before going to sleep.

Waking a sleeping process costs 25 to 50 microseconds in a virtual machine; a partner that is running on
another core answers in less. So a waiter first looks for about as long as a wake-up would cost, less and less
when that has not paid off lately, not at all where there is only one usable CPU (looking would keep the
partner from running).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK

#: Looks in a full spin: one costs some 60 to 90 ns, so this is about 50 microseconds.
MOST_LOOKS = 700
_FEWEST_LOOKS = 24
#: A sleep that was over sooner than this would better have been a spin.
SHORT_SLEEP_SECONDS = 0.0002


@functools.cache
def _has_several_cpus() -> bool:
    # Asked once: it reads the files of the control groups, which takes longer than making a queue.
    from mpkit._platform.resources.cpus import usable_cpus  # noqa: PLC0415  and few processes wait

    return usable_cpus() > 1


class SpinBudget:
    """How many looks the next wait may take; doubles when a look has succeeded, halves when all were in
    vain.
    """

    __slots__ = ("looks",)

    def __init__(self) -> None:
        self.looks = MOST_LOOKS if _has_several_cpus() else 0

    def paid(self) -> None:
        self.looks = min(self.looks * 2, MOST_LOOKS)

    def failed(self) -> None:
        if self.looks:
            self.looks = max(self.looks // 2, _FEWEST_LOOKS)

    def sleep(self, sleep: Callable[[float | None], bool], deadline: float | None) -> bool:
        """Sleep, and learn from it: after a short sleep the next wait may look for longer again."""
        begun = CLOCK.monotonic()
        woken = sleep(deadline)
        if woken and CLOCK.monotonic() - begun < SHORT_SLEEP_SECONDS:
            self.paid()
        return woken
