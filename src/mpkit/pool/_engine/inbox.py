"""What a worker has been sent and has not begun: where that is, and how the worker is kept from it.

A task goes from the inbox into the row and then into the outbox, and is in the next one before it leaves the
one before. Whoever holds the lock of the inbox may take records out; the worker does so for one at a time.
"""

from __future__ import annotations

from mpkit._platform.processes import identity
from mpkit._platform.processes.stat_file import is_stopped
from mpkit._platform.threads.clock import CLOCK
from mpkit.pool._engine.lane import Lane

#: More records than an inbox can hold.
ALL = 1 << 20
#: How long the lock of an inbox is waited for. A worker that is ready to run needs it for a microsecond.
_PATIENCE_SECONDS = 5.0


def number_of(record: bytes) -> int:
    """The task in a record of an inbox."""
    return int.from_bytes(record[:8], "little")


def lock_inbox(lane: Lane) -> bool:
    """Keep a worker from taking a record; False when it is dead, stopped by a signal, or kept from it for
    good.
    """
    if lane.doomed:
        return False
    if lane.lock_inbox():
        return True
    # The worker holds it for a microsecond, unless it died or was stopped just there. (That it is stopped
    # cannot be seen everywhere.)
    deadline = CLOCK.monotonic() + _PATIENCE_SECONDS
    while not lane.lock_inbox(0.01):
        if (
            lane.identity is None
            or not identity.is_alive(lane.identity)
            or is_stopped(lane.identity.pid)
            or CLOCK.monotonic() > deadline
        ):
            return False
    return True


def unbegun(lane: Lane) -> set[int]:
    """The tasks in the inbox of a worker.

    Raises:
        TornRingError: what is there cannot be the records of tasks.
    """
    return {number_of(record) for record in lane.channel.inbox.peek_many(ALL)[0]}


def handed_in(lane: Lane) -> set[int]:
    """The tasks of a worker that have an outcome in its outbox; if that is empty, nobody has them.

    Whoever looks in the order in which a task goes (see above), the outbox last, misses none.

    Raises:
        TornRingError: what is in its inbox cannot be the records of tasks.
    """
    waiting = unbegun(lane)
    running = lane.running()
    return {number for number in lane.sent if number != running and number not in waiting}
