"""What a worker has been sent and has not begun: where it is, and how the worker is kept from beginning it.

A task moves from the inbox to the status row (while it runs) to the outbox (as its outcome), and is at the
next place before it leaves the previous one. Only the process that holds the lock of the inbox takes records
out; the worker does so for one record at a time.
"""

from __future__ import annotations

from mpkit._platform.processes import identity
from mpkit._platform.processes.stat_file import is_stopped
from mpkit._platform.threads.clock import CLOCK
from mpkit.pool._engine.lane import Lane

#: More records than an inbox can hold.
ALL = 1 << 20
#: How long to wait for the lock of an inbox. A worker that is ready to run holds it for a microsecond.
_PATIENCE_SECONDS = 5.0
#: How often meanwhile to check whether the worker can still release it.
_SLICE_SECONDS = 0.01


def number_of(record: bytes) -> int:
    """The number of the task in a record of an inbox."""
    return int.from_bytes(record[:8], "little")


def lock_inbox(lane: Lane) -> bool:
    """Take the lock of a worker's inbox, so that the worker begins no task (holding the dispatcher's lock).

    Returns:
        False if the lock was not taken: the worker is dead, doomed, or stopped by a signal.
    """
    if lane.doomed:
        return False
    if lane.try_lock_inbox():
        return True
    # The worker holds it for a microsecond, unless it died or was stopped just then. The deadline is for
    # systems on which it cannot be seen that a process is stopped.
    deadline = CLOCK.monotonic() + _PATIENCE_SECONDS
    while not lane.try_lock_inbox(_SLICE_SECONDS):
        if (
            lane.identity is None
            or not identity.is_alive(lane.identity)
            or is_stopped(lane.identity.pid)
            or CLOCK.monotonic() > deadline
        ):
            return False
    return True


def unbegun(lane: Lane) -> set[int]:
    """The numbers of the tasks in the inbox of a worker.

    Raises:
        TornRingError: the ring does not hold records of tasks; something has written over it.
    """
    return {number_of(record) for record in lane.channel.inbox.peek_many(ALL)[0]}


def handed_in(lane: Lane) -> set[int]:
    """The tasks of a worker that are neither in its inbox nor running.

    Each of them has an outcome in the outbox, or it is lost. The outbox must be checked after this, that is,
    in the order in which a task moves: then no task is overlooked.

    Raises:
        TornRingError: the inbox does not hold records of tasks; something has written over it.
    """
    waiting = unbegun(lane)
    running = lane.running()
    return {number for number in lane.sent if number != running and number not in waiting}
