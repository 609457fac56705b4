"""Workers that leave: by themselves (after so many tasks, with too much memory, or with a half-imported
module), or at the end of the pool.

Usually the process of such a worker ends at once. But at its end, Python waits for what tasks have left in
it: non-daemon threads, and processes of multiprocessing. `multiprocessing.Pool` waits for that, too, if need
be for ever. Here, others get what the worker had not begun, the worker is replaced, and what was left in it
may go on for a while.

A worker that has said that it leaves, and whose process has not ended a moment later, is called *staying*.
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
from mpkit.pool._protocol.channel import LEAVE_RECORD, LOW, Board

_logger = logging.getLogger("mpkit.pool")

#: How long a worker that leaves by itself may take to end before it is replaced anyway. (Not at once: its
#: exit handlers may release something that only one worker may have at a time.)
_GOING_SECONDS = 1.0
#: How long a worker may take to end at the end of the pool, or if too many are staying. Longer with a long
#: grace period (see `_GRACE_PERIODS`), like the next one.
_LEAST_SECONDS = 10.0
#: How long a worker that has left by itself may stay otherwise.
_MOST_SECONDS = 60.0
#: Unless the pool is terminated, a leaving worker may take at least this many grace periods.
_GRACE_PERIODS = 10


class Leavers:
    """Looks after the workers that leave, in the supervisor's thread."""

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

    # -- workers that leave by themselves --------------------------------------------------------------------

    def look_after(self, now: float) -> float:
        """Take back what they have not begun, kill those that stay too long; returns when to look again."""
        leavers = [lane for lane in self._lanes() if lane.left_at]
        for lane in leavers:
            if lane.sent:
                with self._collector.under_lock() as settlements:
                    self._dispatcher.give_to_others(lane, settlements)
        looks = [lane.left_at + _GOING_SECONDS for lane in leavers if not _is_staying(lane, now)]
        staying = sorted((lane for lane in leavers if _is_staying(lane, now)), key=lambda lane: lane.left_at)
        # If there are more than the pool has workers, the ones that left first may stay for less time.
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

    def staying(self, now: float) -> int:
        """How many are staying, and so are to be replaced although their processes have not ended."""
        return sum(_is_staying(lane, now) for lane in self._lanes())

    def _end(self, lane: Lane) -> None:
        lane.kill()
        # Set last: after an exception this is tried again.
        lane.leave_by = NEVER
        problem = (
            "%s: worker %d was killed: it had left, but a thread or a process that a task had started in it "
            "kept it from ending"
        )
        self._collector.log(_logger.warning, problem, self._options.name, lane.pid)

    # -- all workers, at the end of the pool -----------------------------------------------------------------

    def send_home(self, now: float) -> float:
        """A closed pool has no tasks left: have all workers leave, and kill those that do not in time.

        Returns:
            When to look again.
        """
        has_told = False
        for lane in self._lanes():
            if not lane.told_to_leave:
                lane.told_to_leave = has_told = True
                lane.leave_by = now + self._patience(_LEAST_SECONDS)
                self._tell_to_leave(lane)
                if not lane.greeted and not self._crew.is_initializing(lane):
                    # It is still starting, for nothing. (But an initializer that is running may finish.)
                    lane.process.kill()
            elif now >= lane.leave_by:
                lane.kill()
                lane.leave_by = NEVER
        # Remove names while the workers end, which takes longer anyway: they have open what they need, and no
        # further worker will open it. (The files of their channels stay, because if this process dies
        # meanwhile, its workers are found by them.)
        if has_told:
            with tracker.in_one_message():
                self._board.discard()
                for lane in self._lanes():
                    lane.channel.discard_semaphores()
        return self._next_leave()

    def end_all(self, now: float) -> float:
        """The pool has been terminated, or is broken: terminate all workers, and kill those that do not end.

        Returns:
            When to look again.
        """
        for lane in self._lanes():
            if not lane.told_to_end:
                # Even if it has been told to leave, or leaves by itself, and has not ended yet.
                lane.told_to_end = lane.told_to_leave = True
                lane.leave_by = now + self._options.grace_period
                self._programs.follow(lane.terminate())
                # Needed if this process may not send it signals, because it has
                # given up its privileges (setuid).
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

    # -- common to both --------------------------------------------------------------------------------------

    def _lanes(self) -> list[Lane]:
        return list(self._dispatcher.lanes.values())

    def _patience(self, seconds: float) -> float:
        return max(seconds, _GRACE_PERIODS * self._options.grace_period)


def _is_staying(lane: Lane, now: float) -> bool:
    return lane.left_at > 0.0 and now >= lane.left_at + _GOING_SECONDS
