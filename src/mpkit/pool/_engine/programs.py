"""Ends processes that stopped tasks have started: they are told to end, and killed if they do not.

A task may start anything: programs, processes of multiprocessing, forks, a pool of its own. What it leaves
running when it returns stays, as in any program. But if a task is stopped, or its worker dies, what it has
started ends with it: nobody else knows of these processes, and if the task is tried
again, it would start them twice.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import families, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER

#: How many seconds to wait for the end of a process that has been killed. (Only one that is blocked inside
#: the kernel takes that long.)
_KILL_PATIENCE_SECONDS = 2.0


class Programs:
    """The processes of one pool that have been told to end and have not ended (in the supervisor's thread).

    Args:
        grace_period: Seconds between SIGTERM and SIGKILL.
        watch: Has `ended` called when a process ends; returns False if it has ended already.
    """

    def __init__(self, grace_period: float, watch: Callable[[ProcessIdentity], bool]) -> None:
        self._grace_period = grace_period
        self._watch = watch
        # Those that have been sent SIGTERM: when they are killed (monotonic).
        self._told: dict[ProcessIdentity, float] = {}
        # Those that have been killed: when to stop waiting for their end (monotonic).
        self._killed: dict[ProcessIdentity, float] = {}

    def __bool__(self) -> bool:
        return bool(self._told or self._killed)

    def __contains__(self, program: ProcessIdentity) -> bool:
        return program in self._told or program in self._killed

    def terminate(self, programs: Iterable[ProcessIdentity]) -> list[ProcessIdentity]:
        """Tell these and all their descendants to end; returns all processes that have been told."""
        found = [program for program in programs if program not in self._told]
        told = parent_watch.signal_to_end(found, signal.SIGTERM) if found else []
        self.follow(told)
        return told

    def follow(self, told: Iterable[ProcessIdentity]) -> None:
        """Take note of processes that have been told to end: they are killed if they do not in time."""
        due = CLOCK.monotonic() + self._grace_period
        for program in told:
            if signalling.may_be_signalled(program) and self._watch(program):
                self._told.setdefault(program, due)

    def ended(self, program: ProcessIdentity) -> None:
        """Forget a process that has ended."""
        self._told.pop(program, None)
        self._killed.pop(program, None)

    def look_after(self, now: float) -> float:
        """Kill those whose grace period is over; returns when to look again."""
        due = [program for program, at in self._told.items() if now >= at]
        if due:
            families.kill_families(due)
            for program in due:
                del self._told[program]
                self._killed[program] = CLOCK.monotonic() + _KILL_PATIENCE_SECONDS
        for program in [program for program, at in self._killed.items() if now >= at]:
            del self._killed[program]
        return min((*self._told.values(), *self._killed.values()), default=NEVER)

    def kill(self) -> None:
        """Kill all of them now."""
        families.kill_families([*self._told, *self._killed])
