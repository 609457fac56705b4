"""Whether the rings and rows of the workers agree with the ledger, and what is done where they do not.

They may not after an exception (Ctrl-C, the handler of another signal) that came in the middle of something;
or when some code in a worker has written over its words. All of this under the dispatcher's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.queues.ring import TornRingError
from mpkit.errors import TaskCancelled
from mpkit.pool._engine.inbox import handed_in, lock_inbox
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Ledger
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import RAISED, SLEEPING, STARTED, ring_bell

#: Clocks may differ a little from core to core, and no more than this.
_FUTURE_NS = 1_000_000_000

#: See `Dispatcher.drain_lane`.
DrainLane = Callable[[Lane, Settlements], object]


def reconcile(ledger: Ledger, roster: Roster, drain_lane: DrainLane, settlements: Settlements) -> bool:
    """An exception came in between: find what it left undone.

    Returns:
        Whether that is so of all workers; False when one could not be kept from beginning a task.
    """
    with deferred_interrupts():
        for lane in roster.lanes.values():
            lane.update_ready()
            for number in [number for number, task in lane.sent.items() if task.worker != lane.key]:
                del lane.sent[number]
        ledger.recount()
        done = [
            lane.doomed or _reconcile_lane(lane, ledger, roster, drain_lane, settlements)
            for lane in roster.lanes.values()
        ]
    return all(done)


def _reconcile_lane(
    lane: Lane, ledger: Ledger, roster: Roster, drain_lane: DrainLane, settlements: Settlements
) -> bool:
    # The exception may have come just when this was locked.
    lane.unlock_inbox()
    try:
        if not lock_inbox(lane):
            return False
        found = handed_in(lane)
    except TornRingError:
        roster.condemn(lane)
        return False
    finally:
        lane.unlock_inbox()
    # Under the lock of its inbox a worker begins nothing, and it hands in an outcome before it says that it
    # runs nothing. So what was not there, and has no outcome now, no worker has. Ctrl-C is kept from where
    # that could happen; the handlers of other signals, which may raise as well, are not.
    drain_lane(lane, settlements)
    for number in sorted(found):
        task = ledger.finish(lane.key, number, False)
        if task is not None:
            text = f"task {number} was lost when the handler of a signal raised an exception"
            settlements.append((task, RAISED, TaskCancelled(text)))
    # Whoever was interrupted may just have been about to ring.
    lane.words[SLEEPING] = 0
    ring_bell(lane.channel.wake)
    roster.note_if_idle(lane)
    return True


def is_sane(lane: Lane) -> bool:
    """Whether what a worker shares with the pool can be what it has written there itself. It is to be asked
    again now and then: no task may be nowhere twice.
    """
    try:
        lost = handed_in(lane)
    except TornRingError:
        return False
    if not lane.channel.outbox.is_empty():
        lost.clear()
    task = lane.sent.get(lane.running())
    # Only a time limit is counted from that moment.
    limited = task is not None and task.timeout is not None
    begins_later = limited and lane.words[STARTED] > CLOCK.monotonic_ns() + _FUTURE_NS
    # Twice: on machines with weak memory order an outcome may be seen a little later than it should.
    lost_again = lost & lane.lost
    lane.lost = lost
    return not (lost_again or begins_later)
