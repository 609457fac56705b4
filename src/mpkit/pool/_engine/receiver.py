"""Takes what the workers have put into their outboxes: outcomes, log records, and
news of the workers themselves.

No outcome is lost or counted twice, wherever an exception comes: see `Receiver.receive`. All methods are
called under the dispatcher's lock. Outcomes are collected, and told to their sinks
when the lock has been released.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._shm.queues.ring import TornRingError
from mpkit.pool._engine.lane import DECIDED, Lane
from mpkit.pool._engine.ledger import Chunk, Ledger, Task
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import Settlements, do_nothing, ending_error
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import (
    BAD_INITIALIZER,
    BIG_ERROR,
    BIG_PART,
    BIG_VALUE,
    GOODBYE,
    HELLO,
    LAST_RESULT,
    LOG,
    NONE,
    PART,
    RAISED,
    RESULT_HEAD,
    SLEEPING,
    SLEEPS_FOR_ROOM,
    VALUE,
    ring_bell,
)

#: How many records are taken out of an outbox at once.
_BATCH = 512

_unpack_head = RESULT_HEAD.unpack_from


class Receiver:
    """Empties the outboxes of one pool."""

    def __init__(self, ledger: Ledger, roster: Roster) -> None:
        self._ledger = ledger
        self._roster = roster
        #: Called with each log record of a worker; those of one worker come in order.
        self.on_log: Callable[[bytes], object] = do_nothing

    def receive(self, lane: Lane, settlements: Settlements) -> None:
        """Take everything out of the outbox of one worker.

        Raises:
            TornRingError, struct.error: the ring does not hold what a worker hands in;
                something has written over it.
        """
        outbox = lane.channel.outbox
        ledger = self._ledger
        key = lane.key
        sent = lane.sent
        while True:
            # After an interrupt, all records of a batch are processed again, from the first one: they are in
            # `pending` before they leave the ring, and each outcome is in `settlements` before the ledger
            # forgets the task. (A sink that is told twice takes the first outcome.)
            if lane.pending is None:
                lane.pending = outbox.peek_many(_BATCH)
            records, after = lane.pending
            outbox.drop_to(after)
            for record in records:
                number, run_ns, kind = _unpack_head(record)
                if kind <= LAST_RESULT:
                    task = sent.get(number)
                    if task is None:
                        payload.drop_outcome(kind, record)
                        continue
                    if task.ending:
                        self._receive_stopped(lane, task, kind, record, settlements)
                        continue
                    if kind == BIG_VALUE or kind == BIG_ERROR:
                        # Adopted under the lock: once that is released, the supervisor may find the worker
                        # dead, and remove all of its parcels that have not been adopted. And without an
                        # interrupt in between: a parcel can be adopted only once, so if the record is
                        # processed again, the task must have ended.
                        with deferred_interrupts():
                            settlements.append((task, *payload.adopt(kind, record)))
                            ledger.finish(key, number, kind == BIG_VALUE)
                    else:
                        settlements.append((task, kind, record))
                        ledger.finish(key, number, kind == NONE or kind == VALUE)
                    if type(task) is Task:
                        task.function.took(run_ns)
                    elif isinstance(task, Chunk):
                        task.function.took_chunk(run_ns, task.items)
                elif kind == PART or kind == BIG_PART:
                    _receive_part(lane, number, run_ns, kind, record, settlements)
                elif kind == LOG:
                    self.on_log(record)
                elif kind == HELLO:
                    self._roster.note_greeting(lane)
                elif kind == GOODBYE:
                    self._roster.note_leaving(lane)
                elif kind == BAD_INITIALIZER and not lane.greeted:
                    lane.bad_initializer = record
                    self._roster.note_leaving(lane)
                else:
                    raise TornRingError
            lane.pending = None
            if lane.words[SLEEPING] == SLEEPS_FOR_ROOM:
                # Now there is room.
                lane.words[SLEEPING] = 0
                ring_bell(lane.channel.wake)
            if len(records) < _BATCH:
                break

    def _receive_stopped(
        self, lane: Lane, task: Task, kind: int, record: bytes, settlements: Settlements
    ) -> None:
        """End a task that was to be stopped, with the reason for that: its actual outcome is dropped."""
        payload.drop_outcome(kind, record)
        stop = lane.stop
        ours = stop is not None and stop.number == task.number and not lane.doomed
        if ours and stop is not None and stop.stage == DECIDED:
            # The supervisor is just reading the stack of the worker, and will settle the task when it has it.
            stop.ended = task
        else:
            settlements.append((task, RAISED, ending_error(task, lane)))
        self._ledger.finish(lane.key, task.number, False)
        if ours and stop is not None and stop.ended is None:
            self._roster.stop_is_over(lane)


def _receive_part(
    lane: Lane, number: int, reached: int, kind: int, record: bytes, settlements: Settlements
) -> None:
    """Take the outcomes of some items of a chunk: those before the item `reached` that have not come yet."""
    chunk = lane.sent.get(number)
    inner = VALUE if kind == PART else BIG_VALUE
    if not isinstance(chunk, Chunk) or chunk.ending or reached <= chunk.done:
        payload.drop_outcome(inner, record)
        return
    length = reached - chunk.done
    if inner == BIG_VALUE:
        # For the reasons given in `Receiver.receive`.
        with deferred_interrupts():
            settlements.append((chunk, PART, (chunk.done, *payload.adopt(inner, record), length)))
            chunk.done = reached
    else:
        settlements.append((chunk, PART, (chunk.done, inner, record, length)))
        chunk.done = reached
