"""The workers of a pool: which there are, which of them idle, and which the supervisor has to see to.

All methods are called under the dispatcher's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mpkit._platform.threads.clock import CLOCK
from mpkit.pool._engine.lane import Lane, Stop
from mpkit.pool._engine.settlements import do_nothing


class Roster:
    """The workers of one pool."""

    def __init__(self) -> None:
        self.lanes: dict[int, Lane] = {}
        #: Lanes with nothing to do, the one that became so last on top: its worker is still awake.
        #: A dictionary as an ordered set, from which lanes are taken and to which they are added in one step.
        self.idle: dict[Lane, None] = {}
        #: How many have said that they are ready for tasks.
        self.hellos: int = 0
        #: Tasks that were being stopped and have ended, whose workers go on.
        self.stopped: deque[tuple[Lane, Stop]] = deque()
        #: Called when there is something for the supervisor to do: a worker takes no more tasks by its own
        #: choice, or is torn; or a task is one of `stopped`.
        self.on_worker: Callable[[], None] = do_nothing

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: the workers are the parent's."""
        # Other ones, not cleared: this may come in the middle of something that goes through them.
        self.lanes = {}
        self.idle = {}

    def note_greeting(self, lane: Lane) -> None:
        """A worker is ready for tasks."""
        lane.greeted = True
        lane.update_ready()
        self.hellos += 1

    def note_if_idle(self, lane: Lane) -> None:
        """Something about a worker has changed, after which it may have nothing to do."""
        if not lane.sent and lane.ready:
            # Where it stood, if it was there already.
            self.idle[lane] = None

    def note_leaving(self, lane: Lane) -> None:
        """A worker takes no more tasks, by its own choice."""
        lane.leaving = True
        lane.update_ready()
        lane.left_at = lane.left_at or CLOCK.monotonic()
        # What it has not begun is taken back there: whoever drains may be in the middle of something.
        self.on_worker()

    def condemn(self, lane: Lane) -> None:
        """What a ring of a worker holds is not what belongs there: some code in it has written where it
        should not. It is killed (by the supervisor: that may take a moment), and what it had is settled when
        it is dead, as with any death.
        """
        lane.is_torn = True
        lane.update_ready()
        lane.pending = None
        self.on_worker()

    def stop_is_over(self, lane: Lane) -> None:
        """A task that was being stopped has ended, and its worker is fit for others."""
        stop = lane.stop
        if stop is not None:
            # The worker has not begun another task before this: none was sent.
            stop.over_at = CLOCK.monotonic_ns()
            self.stopped.append((lane, stop))
            self.on_worker()
        lane.stop = None
        lane.update_ready()
        self.note_if_idle(lane)
