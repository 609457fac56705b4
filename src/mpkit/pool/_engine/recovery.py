"""Whether the rings and status rows of the workers agree with the ledger, and what is done if they do not.

They may disagree after an exception (Ctrl-C, or one of another signal's handler) in the middle of something,
or when some code in a worker has written over its words. Everything here is called
under the dispatcher's lock.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.queues.ring import TornRingError
from mpkit.errors import TaskCancelled
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Ledger
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import RAISED, SLEEPING, STARTED, ring_bell

#: The clocks of two cores differ by less than this.
_FUTURE_NS = 1_000_000_000

#: See `Dispatcher.drain_lane`.
DrainLane = Callable[[Lane, Settlements], object]


def reconcile(ledger: Ledger, roster: Roster, drain_lane: DrainLane, settlements: Settlements) -> bool:
    """An exception came in the middle of something: repair what it has left half done.

    Returns:
        Whether that is done for all workers; False if one could not be kept from beginning a task meanwhile.
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
    # The exception may have come while this process held the lock.
    lane.unlock_inbox()
    try:
        if not lane.lock_inbox():
            return False
        found = lane.handed_in()
    except TornRingError:
        roster.condemn(lane)
        return False
    finally:
        lane.unlock_inbox()
    # While its inbox was locked, the worker could begin nothing; and it hands in an outcome before it clears
    # the task in its row. So a task that was neither in the inbox nor running, and has no outcome after this
    # drain, is lost. This cannot come of Ctrl-C, which is deferred wherever it might happen; but handlers of
    # other signals may raise exceptions, too.
    drain_lane(lane, settlements)
    for number in sorted(found):
        task = ledger.finish(lane.key, number, False)
        if task is not None:
            text = f"task {number} was lost when the handler of a signal raised an exception"
            settlements.append((task, RAISED, TaskCancelled(text)))
    # The interrupted thread may have been about to wake the worker.
    lane.words[SLEEPING] = 0
    ring_bell(lane.channel.wake)
    roster.note_if_idle(lane)
    return True


def is_sane(lane: Lane) -> bool:
    """Whether the rings and the status row of a worker can be what it has written there itself.

    To be called now and then: it also returns False if the same task could be found
    nowhere at two calls in a row.
    """
    try:
        lost = lane.handed_in()
    except TornRingError:
        return False
    if not lane.channel.outbox.is_empty():
        lost.clear()
    task = lane.sent.get(lane.running())
    # When a task began matters only if it has a time limit.
    limited = task is not None and task.timeout is not None
    begins_later = limited and lane.words[STARTED] > CLOCK.monotonic_ns() + _FUTURE_NS
    # Only if it is lost twice: on machines with weak memory order, an outcome may become visible late.
    lost_again = lost & lane.lost
    lane.lost = lost
    return not (lost_again or begins_later)
