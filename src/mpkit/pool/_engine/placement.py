"""Which worker gets how many tasks, which one gives some away, and when a worker asks for more.

These are decisions only: nothing is sent here. Short tasks are sent ahead, so that a worker always has about
`AHEAD_NS` of work and the parent can sleep meanwhile; long ones are not (`Function.ahead`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.roster import Roster


class Placement:
    """Chooses the worker for each new task."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        # Where in the list of workers the search begins.
        self._turn = 0
        # The worker that the last task was sent ahead to. It is chosen again as long as it may have more,
        # which saves the search.
        self._favourite: Lane | None = None

    def choose(self, function: Function) -> Lane | None:
        """A worker that may have one more task of this function, or None. If it was idle,
        it no longer counts as idle.
        """
        idle = self._roster.idle
        while idle:
            lane, _ = idle.popitem()
            if lane.ready and not lane.sent and (lane.maxtasksperchild is None or lane.room() > 0):
                return lane
        ahead = function.ahead
        if ahead <= 1:
            return None
        favourite = self._favourite
        if (
            favourite is not None
            and favourite.ready
            and len(favourite.sent) < ahead
            and (favourite.maxtasksperchild is None or favourite.room() > 0)
        ):
            return favourite
        lanes = list(self._roster.lanes.values())
        for turn in range(self._turn, self._turn + len(lanes)):
            lane = lanes[turn % len(lanes)]
            if lane.ready and len(lane.sent) < ahead and lane.room() > 0:
                self._turn = turn % len(lanes)
                self._favourite = lane
                return lane
        self._turn += 1
        return None

    def forget_favourite(self) -> None:
        """A worker is gone, and may have been the favourite."""
        self._favourite = None


def even_share(queued: int, workers: int) -> int:
    """How many of the queued tasks each worker gets at most, so that the first one does not get them all."""
    return -(-queued // (workers or 1))


def most_loaded(lanes: Iterable[Lane]) -> Lane | None:
    """The worker that has most tasks, if it has any that it cannot have begun."""
    lane = max(lanes, key=lambda lane: len(lane.sent), default=None)
    return lane if lane is not None and len(lane.sent) > 1 else None


def stolen_share(unbegun: int, room: int) -> int:
    """How many of the tasks that a busy worker has not begun go to an idle one that has `room` for more."""
    return min((unbegun + 1) // 2, room)


def low_marks(sent: Sequence[int], queued: int) -> list[int]:
    """When each worker is to ring for more tasks: the value of its word `LOW`.

    Args:
        sent: how many tasks each worker has.
        queued: how many tasks are queued.
    """
    if queued:
        # When half of its tasks are left: it works on these while the parent wakes up and sends more.
        return [1 + (number >> 1) for number in sent]
    # When its inbox is empty, if some worker has tasks that it has not begun: it may get some of these.
    return [int(max(sent, default=0) > 1)] * len(sent)
