"""What comes out of the outboxes of the workers, and becomes of it: outcomes, log records, news of a worker.

Nothing is lost or counted twice, wherever an exception comes: see `Receiver.receive`. All methods are called
under the dispatcher's lock. Outcomes are collected, and told to their sinks when it is free.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._shm.queues.ring import TornRingError
from mpkit.pool._engine.lane import Lane
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
    VALUE,
    ring_bell,
)

#: Records taken out of one outbox in one go.
_BATCH = 512

_unpack_head = RESULT_HEAD.unpack_from


class Receiver:
    """Empties the outboxes of one pool."""

    def __init__(self, ledger: Ledger, roster: Roster) -> None:
        self._ledger = ledger
        self._roster = roster
        #: Called with each log record of a worker: those of one come in order.
        self.on_log: Callable[[bytes], object] = do_nothing

    def receive(self, lane: Lane, settlements: Settlements) -> None:
        """Take everything that one worker has handed in.

        Raises:
            TornRingError, struct.error: something there cannot be what the worker has handed in.
        """
        outbox = lane.channel.outbox
        ledger = self._ledger
        key = lane.key
        sent = lane.sent
        while True:
            # What an interrupt leaves undone is done again, from the first of them: nothing leaves the ring
            # before it is here, and each is told before the ledger forgets it (whoever is told twice takes
            # the first).
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
                        # Under the lock: as soon as it is free, the supervisor may find the worker dead and
                        # remove what it has not handed over. And once only: it is gone then, and whoever
                        # drains again after an interrupt must find the task ended.
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
            if lane.words[SLEEPING] == 2:
                # It waits for the room that there is now.
                lane.words[SLEEPING] = 0
                ring_bell(lane.channel.wake)
            if len(records) < _BATCH:
                break

    def _receive_stopped(
        self, lane: Lane, task: Task, kind: int, record: bytes, settlements: Settlements
    ) -> None:
        """The outcome of a task that was to be stopped: it ends as was decided then."""
        payload.drop_outcome(kind, record)
        stop = lane.stop
        ours = stop is not None and stop.number == task.number and not lane.doomed
        if ours and stop is not None and stop.stage == 0:
            # The supervisor is just reading its stack, and goes on from there.
            stop.ended = task
        else:
            settlements.append((task, RAISED, ending_error(task, lane)))
        self._ledger.finish(lane.key, task.number, False)
        if ours and stop is not None and stop.ended is None:
            self._roster.stop_is_over(lane)


def _receive_part(
    lane: Lane, number: int, reached: int, kind: int, record: bytes, settlements: Settlements
) -> None:
    """The outcomes of some items of a chunk, up to the item `reached`."""
    chunk = lane.sent.get(number)
    inner = VALUE if kind == PART else BIG_VALUE
    if not isinstance(chunk, Chunk) or chunk.ending or reached <= chunk.done:
        payload.drop_outcome(inner, record)
        return
    length = reached - chunk.done
    if inner == BIG_VALUE:
        # As in `Receiver.receive`.
        with deferred_interrupts():
            settlements.append((chunk, PART, (chunk.done, *payload.adopt(inner, record), length)))
            chunk.done = reached
    else:
        settlements.append((chunk, PART, (chunk.done, inner, record, length)))
        chunk.done = reached
