"""Workers that leave: by themselves (after so many tasks, with too much memory, or with half a module), and
at the end of the pool.

As a rule the process of one ends at once. But Python waits at its end for what tasks have left there: threads
that are no daemons, processes of multiprocessing. `multiprocessing.Pool` waits as long, for ever if need be.
Here nobody waits: others get what the worker had not begun, it is replaced, and what was left in it may go on
for a while.
"""

from __future__ import annotations

import logging

from mpkit._platform.stdlib import tracker
from mpkit._platform.threads.deadlines import NEVER
from mpkit.pool._engine.collector import Collector
from mpkit.pool._engine.crew import Crew
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.programs import Programs
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import LEAVE_RECORD, LOW, Board

_logger = logging.getLogger("mpkit.pool")

#: How long such a worker may take to end before it is replaced all the same. (Not at once: what only one
#: worker may have at a time is given back in exit handlers.)
_GOING_SECONDS = 1.0
#: How long one may take to end at the end of the pool, or where there are many of them; and how long one that
#: has left by itself may stay for what tasks have left in it. Longer with a long grace period.
_LEAST_SECONDS = 10.0
_MOST_SECONDS = 60.0


class Leavers:
    """Looks after them, in the supervisor's thread."""

    def __init__(
        self,
        options: PoolOptions,
        board: Board,
        dispatcher: Dispatcher,
        collector: Collector,
        crew: Crew,
        programs: Programs,
    ) -> None:
        self._options = options
        self._board = board
        self._dispatcher = dispatcher
        self._collector = collector
        self._crew = crew
        self._programs = programs

    # -- those that leave by themselves ----------------------------------------------------------------------

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
                lane.leave_by = lane.left_at + self._patience(
                    _LEAST_SECONDS if place < too_many else _MOST_SECONDS
                )
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

    # -- all of them, at the end of the pool -----------------------------------------------------------------

    def send_home(self, now: float) -> float:
        """Nothing is left to do: have all of them leave, and end those that do not; when to look again."""
        has_told = False
        for lane in self._lanes():
            if not lane.told_to_leave:
                lane.told_to_leave = has_told = True
                lane.leave_by = now + self._patience(_LEAST_SECONDS)
                self._tell_to_leave(lane)
                if not lane.greeted and lane.process is not None and not self._crew.is_initializing(lane):
                    # It is still starting, for nothing. (The initializer finishes what it has begun.)
                    lane.process.kill()
            elif now >= lane.leave_by:
                lane.kill()
                lane.leave_by = NEVER
        # While they end, which takes longer: they have open what they need, and nobody comes after them. (The
        # files of the workers stay: by them those are found whose pool dies meanwhile.)
        if has_told:
            with tracker.in_one_message():
                self._board.discard()
                for lane in self._lanes():
                    lane.channel.discard_semaphores()
        return self._next_leave()

    def end_all(self, now: float) -> float:
        """The pool is over: terminate all of them, and kill those that do not end; when to look again."""
        for lane in self._lanes():
            if not lane.told_to_end:
                # Also one that was told to leave, or leaves by itself, and has not ended.
                lane.told_to_end = lane.told_to_leave = True
                lane.leave_by = now + self._options.grace_period
                self._programs.follow(lane.terminate())
                # It is told as well: a program that has given up its rights (setuid) may send no signal.
                self._tell_to_leave(lane)
            elif now >= lane.leave_by:
                lane.kill(spare_earlier=True)
                lane.leave_by = NEVER
        return self._next_leave()

    def _tell_to_leave(self, lane: Lane) -> None:
        with self._dispatcher.lock:
            lane.leaving = True
            lane.update_ready()
            lane.words[LOW] = 0
            lane.channel.inbox.try_put(LEAVE_RECORD)
            lane.wake()

    def _next_leave(self) -> float:
        return min((lane.leave_by for lane in self._lanes()), default=NEVER)

    # -- both ------------------------------------------------------------------------------------------------

    def _lanes(self) -> list[Lane]:
        return list(self._dispatcher.lanes.values())

    def _patience(self, seconds: float) -> float:
        return max(seconds, 10 * self._options.grace_period)


def _left_at(lane: Lane) -> float:
    return lane.left_at


def _is_staying(lane: Lane, now: float) -> bool:
    return lane.left_at > 0.0 and now >= lane.left_at + _GOING_SECONDS
