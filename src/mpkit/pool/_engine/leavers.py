"""Workers that have left by themselves: after so many tasks, with too much memory, or with half a module.

As a rule the process of one ends at once. But Python waits at its end for what tasks have left there: threads
that are no daemons, processes of multiprocessing. `multiprocessing.Pool` waits as long, for ever if need be.
Here nobody waits: others get what the worker had not begun, it is replaced, and what was left in it may go on
for a while.
"""

from __future__ import annotations

import logging

from mpkit._platform.threads.deadlines import NEVER
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.dispatcher import Dispatcher, Settlements
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.options import PoolOptions

_logger = logging.getLogger("mpkit.pool")

#: How long such a worker may take to end before it is replaced all the same. (Not at once: what only one
#: worker may have at a time is given back in exit handlers.)
_GOING_SECONDS = 1.0
#: How long it may stay for what tasks have left in it, at least, and in all; longer with a long grace period.
_LEAST_SECONDS = 10.0
_MOST_SECONDS = 60.0


class Leavers:
    """Looks after them, in the supervisor's thread."""

    def __init__(self, options: PoolOptions, dispatcher: Dispatcher, collector: Collector) -> None:
        self._options = options
        self._dispatcher = dispatcher
        self._collector = collector

    def look_after(self, now: float) -> float:
        """Take back what they have not begun, and end those that stay for too long; when to look again."""
        leavers = [lane for lane in self._lanes() if lane.left_at]
        for lane in leavers:
            if lane.sent:
                self._give_to_others(lane)
        looks = [lane.left_at + _GOING_SECONDS for lane in leavers if not _is_staying(lane, now)]
        staying = sorted((lane for lane in leavers if _is_staying(lane, now)), key=_left_at)
        # Of those the oldest ones make room.
        too_many = len(staying) - self._options.processes
        for place, lane in enumerate(staying):
            if lane.leave_by != NEVER:
                seconds = _LEAST_SECONDS if place < too_many else _MOST_SECONDS
                lane.leave_by = lane.left_at + max(seconds, 10 * self._options.grace_period)
                if now >= lane.leave_by:
                    self._end(lane)
                looks.append(lane.leave_by)
        return min(looks, default=NEVER)

    def are_too_many(self, now: float) -> bool:
        """Whether there are so many that stay that one has to go before another worker is started."""
        return self.staying(now) > self._options.processes

    def staying(self, now: float) -> int:
        """How many do not end, and are to be replaced all the same."""
        return sum(_is_staying(lane, now) for lane in self._lanes())

    def _lanes(self) -> list[Lane]:
        return list(self._dispatcher.lanes.values())

    def _give_to_others(self, lane: Lane) -> None:
        settlements: Settlements = []
        try:
            with self._dispatcher.lock:
                self._dispatcher.give_to_others(lane, settlements)
        finally:
            self._collector.settle_surely(settlements)

    def _end(self, lane: Lane) -> None:
        lane.kill()
        # Only now: what could not be done is tried again.
        lane.leave_by = NEVER
        problem = (
            "%s: worker %d was killed: it had left, but a thread or a process that a task had started in it "
            "kept it from ending"
        )
        self._collector.log(_logger.warning, problem, self._options.name, lane.pid)


def _left_at(lane: Lane) -> float:
    return lane.left_at


def _is_staying(lane: Lane, now: float) -> bool:
    return lane.left_at > 0.0 and now >= lane.left_at + _GOING_SECONDS
