"""Who gets how many tasks, who gives some away, and when more are asked for: decisions, without any action.

Short tasks are sent ahead in batches, so that a worker always has about `AHEAD_NS` of work and the parent can
sleep meanwhile; long ones are not (`Function.ahead`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.roster import Roster


class Placement:
    """Whom each new task goes to."""

    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._turn = 0
        # The one that the last task was sent ahead to: as long as it may have more, nobody else is asked.
        self._favourite: Lane | None = None

    def choose(self, function: Function) -> Lane | None:
        """A worker that may have one more task of this kind, or None. One that idles no longer counts as
        such.
        """
        idle = self._roster.idle
        while idle:
            lane, _ = idle.popitem()
            if lane.ready and not lane.sent and (lane.tasks is None or lane.room() > 0):
                return lane
        ahead = function.ahead
        if ahead <= 1:
            return None
        favourite = self._favourite
        if (
            favourite is not None
            and favourite.ready
            and len(favourite.sent) < ahead
            and (favourite.tasks is None or favourite.room() > 0)
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
        """A worker has gone, perhaps that one."""
        self._favourite = None


def even_share(queued: int, workers: int) -> int:
    """How many of the queued tasks each worker gets at most: not all to the first."""
    return -(-queued // (workers or 1))


def most_loaded(lanes: Iterable[Lane]) -> Lane | None:
    """The worker that has most tasks, if it has one that it cannot have begun."""
    lane = max(lanes, key=_load, default=None)
    return lane if lane is not None and len(lane.sent) > 1 else None


def stolen_share(unbegun: int, room: int) -> int:
    """How many of the tasks that a busy worker has not begun go to one that idles: the older half."""
    return min((unbegun + 1) // 2, room)


def low_marks(sent: Sequence[int], queued: int) -> list[int]:
    """When each worker is to ring for more (see `LOW`).

    Args:
        sent: how many tasks each of them has.
        queued: how many wait.
    """
    if queued:
        # Half of what it has: it works on the other half while the parent wakes and sends more.
        return [1 + (number >> 1) for number in sent]
    # Where one has more than it can have begun, others may take of that.
    return [int(max(sent, default=0) > 1)] * len(sent)


def _load(lane: Lane) -> int:
    return len(lane.sent)
