"""What a stopped task has started, and has not ended itself: it is told to end, and killed if it does not.

A task may start anything: programs, processes of multiprocessing, forks, a pool of its own. What it leaves
when it returns stays, as in any program. But a task that is stopped, or whose worker dies, takes what it has
started with it: nobody else knows of that, and a task that is tried again would do it twice.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER

#: How long it is waited for what has been killed; only a process inside the kernel can take that long.
_KILL_PATIENCE = 2.0


class Programs:
    """Those that have been told to end, and have not yet. In the supervisor's thread.

    Args:
        grace_period: Seconds between SIGTERM and SIGKILL.
        watch: Has `ended` called when a process has ended; false when it has already.
    """

    def __init__(self, grace_period: float, watch: Callable[[ProcessIdentity], bool]) -> None:
        self._grace_period = grace_period
        self._watch = watch
        # When each is killed, and those that have been: when they are no longer waited for (monotonic).
        self._told: dict[ProcessIdentity, float] = {}
        self._killed: dict[ProcessIdentity, float] = {}

    def __bool__(self) -> bool:
        return bool(self._told or self._killed)

    def __contains__(self, program: ProcessIdentity) -> bool:
        return program in self._told or program in self._killed

    def terminate(self, programs: Iterable[ProcessIdentity]) -> list[ProcessIdentity]:
        """Tell these to end, and all that descends from them: all that have been told."""
        found = [program for program in programs if program not in self._told]
        told = parent_watch.signal_to_end(found, signal.SIGTERM) if found else []
        self.follow(told)
        return told

    def follow(self, told: Iterable[ProcessIdentity]) -> None:
        """These have been told to end: kill those that do not within the grace period."""
        due = CLOCK.monotonic() + self._grace_period
        for program in told:
            if signalling.may_be_signalled(program) and self._watch(program):
                self._told.setdefault(program, due)

    def ended(self, program: ProcessIdentity) -> None:
        """A process has ended."""
        self._told.pop(program, None)
        self._killed.pop(program, None)

    def look_after(self, now: float) -> float:
        """Kill those whose grace period is over; when to look again."""
        due = [program for program, at in self._told.items() if now >= at]
        if due:
            families.kill_families(due)
            for program in due:
                del self._told[program]
                self._killed[program] = CLOCK.monotonic() + _KILL_PATIENCE
        for program in [program for program, at in self._killed.items() if now >= at]:
            del self._killed[program]
        return min((*self._told.values(), *self._killed.values()), default=NEVER)

    def kill(self) -> None:
        """Kill all of them now."""
        families.kill_families([*self._told, *self._killed])
