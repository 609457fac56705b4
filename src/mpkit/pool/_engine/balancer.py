"""Moves tasks: from the queue into inboxes, from one inbox into another, and from
inboxes back into the queue.

If a worker is idle and no task is queued, it gets tasks that a busy worker has not begun. All methods are
called under the dispatcher's lock. Nothing here waits, except for the lock of an inbox, which a worker holds
for microseconds.
"""

from __future__ import annotations

from collections.abc import Callable

from mpkit._shm.queues.ring import TornRingError
from mpkit.pool._engine.lane import ALL, Lane, number_of
from mpkit.pool._engine.ledger import Ledger, Task
from mpkit.pool._engine.placement import even_share, low_marks, most_loaded, stolen_share
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import do_nothing
from mpkit.pool._protocol.channel import LOW


class Balancer:
    """Keeps the workers of one pool busy."""

    def __init__(self, ledger: Ledger, roster: Roster) -> None:
        self._ledger = ledger
        self._roster = roster
        #: Called when tasks are queued that some thread has to send later.
        self.on_queue: Callable[[], None] = do_nothing
        #: Whether workers have been told to ring when they run low.
        self.lows_set: bool = False

    def send_queued(self) -> None:
        """Send queued tasks to all workers that may have more; if none are left, have the idle ones steal.

        To be called with interrupts deferred: an interrupt between putting a task into a ring and noting it
        in the ledger would have it run twice, or never.
        """
        ledger, roster = self._ledger, self._roster
        while roster.idle and ledger.queued:
            lane, _ = roster.idle.popitem()
            if lane.ready and not lane.sent:
                self._send(lane, 1)
        if ledger.queued:
            lanes = [lane for lane in roster.lanes.values() if lane.ready]
            share = even_share(ledger.queued, len(lanes))
            for lane in lanes:
                self._send(lane, share)
        if roster.idle and ledger.under_way > 1 and not ledger.queued:
            self._steal()

    def _send(self, lane: Lane, most: int) -> None:
        """Send up to `most` tasks from the queue, but not more than `Function.ahead` says."""
        ledger = self._ledger
        task = ledger.first()
        if task is None:
            return
        sent = lane.sent
        key = lane.key
        number = 0
        try_put = lane.channel.inbox.try_put
        most = min(most, lane.room())
        while task is not None and number < most and len(sent) < task.function.ahead:
            if not try_put(task.record):
                break
            ledger.send_first(key)
            number += 1
            task = ledger.first()
        if number:
            lane.wake()

    def _steal(self) -> None:
        """Move tasks that busy workers have not begun to idle ones."""
        roster = self._roster
        while roster.idle:
            thief = next(reversed(roster.idle))
            if not thief.ready or thief.sent or thief.room() <= 0:
                del roster.idle[thief]
                continue
            victim = most_loaded(roster.lanes.values())
            if victim is None or victim is thief or victim.channel.inbox.is_empty():
                return
            records = self.take_unbegun(victim)
            if not records:
                return
            del roster.idle[thief]
            # The thief gets the oldest tasks, because it can begin at once.
            cut = stolen_share(len(records), thief.room())
            left = self.hand_on(victim, thief, records[:cut])
            left += self.hand_on(victim, victim, records[cut:])
            if left:
                # The result is not needed: a task that ends here was cancelled, and its sink has been told.
                self.requeue(victim, left)
                return

    def take_unbegun(self, lane: Lane) -> list[tuple[int, bytes]]:
        """Take everything that a worker has not begun out of its inbox.

        Returns:
            (number, record) of each task. Nothing if the inbox cannot be locked: see `Lane.lock_inbox`.
        """
        if lane.doomed:
            # This process may hold the lock for good.
            return []
        try:
            if not lane.lock_inbox():
                return []
            records = lane.channel.inbox.try_get_many(ALL)
        except TornRingError:
            self._roster.condemn(lane)
            return []
        finally:
            lane.unlock_inbox()
        return [(number_of(record), record) for record in records]

    def hand_on(self, victim: Lane, target: Lane, records: list[tuple[int, bytes]]) -> list[int]:
        """Put records that were taken out of the inbox of `victim` into that of `target`, which is empty.

        Returns:
            The tasks that are with neither of them now. Records always fit back into the ring that they came
            from. They may not fit into another one, even if it is empty: a record is never split at the end
            of a ring, and the ring may be empty at any index.
        """
        left: list[int] = []
        try_put = target.channel.inbox.try_put
        for number, record in records:
            task = victim.sent.get(number)
            if task is None:
                continue
            # Once one has not fitted, no other is put in, so that they stay in order.
            if left or task.ending or not try_put(record):
                left.append(number)
                continue
            if target is not victim:
                # In this order: after an exception in between, it belongs to the worker that `worker` names.
                target.sent[number] = task
                task.worker = target.key
                del victim.sent[number]
        if len(left) < len(records):
            target.wake()
        return left

    def requeue(self, lane: Lane, numbers: list[int]) -> list[Task]:
        """Put tasks that were taken out of a worker's inbox in front of the queue.

        Returns:
            Those that were to be stopped: they have ended instead.
        """
        ended = self._ledger.take_back(lane.key, numbers)
        if len(ended) < len(numbers):
            # The thread that has to send them later may be asleep, and workers that have not been told when
            # to ring for more do not ring.
            self.on_queue()
        return ended

    def set_lows(self) -> None:
        """Tell each worker when to ring for more tasks."""
        lanes = self._roster.lanes.values()
        marks = low_marks([len(lane.sent) for lane in lanes], self._ledger.queued)
        self.lows_set = any(marks)
        for lane, low in zip(lanes, marks, strict=True):
            if low != lane.low:
                lane.low = low
                lane.words[LOW] = low
