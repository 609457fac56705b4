"""The workers of a pool: which there are, which of them are idle, and which need the supervisor.

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
        #: Workers with nothing to do. The last one became idle most recently, and is taken first, because its
        #: process may still be awake. (A dictionary serves as an ordered set, which lanes are added to and
        #: taken from in a single step.)
        self.idle: dict[Lane, None] = {}
        #: How many workers have said that they are ready for tasks, since the pool was created.
        self.hellos: int = 0
        #: Stops whose tasks have ended while their workers go on: the supervisor has to end
        #: what these tasks have started.
        self.stopped: deque[tuple[Lane, Stop]] = deque()
        #: Called when the supervisor has something to do: a worker is leaving by its own choice, or is torn,
        #: or there is an entry in `stopped`.
        self.on_worker: Callable[[], None] = do_nothing

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: the workers belong to the parent."""
        # Replaced and not cleared, because the fork may have come in the middle of an iteration over them.
        self.lanes = {}
        self.idle = {}

    def note_greeting(self, lane: Lane) -> None:
        """A worker is ready for tasks."""
        lane.greeted = True
        lane.update_ready()
        self.hellos += 1

    def note_if_idle(self, lane: Lane) -> None:
        """Add a worker to the idle ones if it is ready and has no task."""
        if not lane.sent and lane.ready:
            # If it is there already, it keeps its place.
            self.idle[lane] = None

    def note_leaving(self, lane: Lane) -> None:
        """A worker has said that it takes no more tasks."""
        lane.leaving = True
        lane.update_ready()
        lane.left_at = lane.left_at or CLOCK.monotonic()
        # The supervisor takes back what it has not begun. Not this thread: it may be in the middle of
        # processing the outbox.
        self.on_worker()

    def condemn(self, lane: Lane) -> None:
        """Have a worker killed, because some code in it has written over what it shares with the pool.

        The supervisor kills it (which may take a moment), and then settles its tasks as after any death.
        """
        lane.is_torn = True
        lane.update_ready()
        lane.pending = None
        self.on_worker()

    def stop_is_over(self, lane: Lane) -> None:
        """A task that was being stopped has ended, and its worker can take others."""
        stop = lane.stop
        if stop is not None:
            # Until now the worker cannot have begun another task: when the stop was decided, it was running
            # this one and its inbox was empty, and nothing was sent since.
            stop.over_at = CLOCK.monotonic_ns()
            self.stopped.append((lane, stop))
            self.on_worker()
        lane.stop = None
        lane.update_ready()
        self.note_if_idle(lane)
