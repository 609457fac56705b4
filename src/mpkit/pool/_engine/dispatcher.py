"""Everything that happens under the pool's one lock: tasks are sent to workers, and outcomes are taken.

The dispatcher owns the lock, and its methods are whole steps. These use its parts: `placement` (decides where
tasks go), `balancer` (sends tasks, and takes them back), `receiver` (takes outcomes), `recovery` (repairs
what an exception has left half done).

Nothing here waits, except for the lock of an inbox, which a worker holds for microseconds. And nothing here
calls foreign code: outcomes are collected under the lock, and the caller hands them to
their sinks after releasing it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from mpkit._platform.processes.stat_file import is_stopped
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.queues.ring import TornRingError
from mpkit.pool._engine.balancer import Balancer
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import CANCELLED, SENT, Ledger, Task
from mpkit.pool._engine.placement import Placement
from mpkit.pool._engine.receiver import Receiver
from mpkit.pool._engine.recovery import is_sane, reconcile
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import Settlements, ending_error
from mpkit.pool._protocol.channel import RAISED

#: While tasks are queued, a submitting thread fetches outcomes and fills inboxes itself after so many tasks.
_LOOK_EVERY = 64


class Dispatcher:
    """The pool's lock, and what is done under it."""

    def __init__(self) -> None:
        self.lock: InterruptibleLock = InterruptibleLock()
        self.ledger: Ledger = Ledger()
        self.roster: Roster = Roster()
        self.receiver: Receiver = Receiver(self.ledger, self.roster)
        self.balancer: Balancer = Balancer(self.ledger, self.roster)
        self._placement = Placement(self.roster)
        #: All workers by key: the roster's dictionary.
        self.lanes: dict[int, Lane] = self.roster.lanes
        # Tasks queued since a submitting thread looked after the workers.
        self._since_look = 0
        #: True while something is being done that an interrupt may leave half done.
        self.suspect: bool = False
        #: The shortest time limit of the tasks there are, or of some that there were lately (seconds).
        #: Changed under the lock.
        self.shortest_timeout: float = NEVER
        #: Called when queued tasks may have been sent, so that there is room for more (`max_pending`).
        self.on_room: Callable[[], None] | None = None

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: the workers and what is in their rings belong to the parent."""
        self.lock = InterruptibleLock()
        self.roster.forget_after_fork()
        self.lanes = self.roster.lanes

    def note_interruption(self) -> None:
        """An exception came in the middle of something: the next `drain` is to repair what is half done."""
        # Under the lock, because a `drain` that is running in another thread clears the flag at its end.
        self.lock.run(self._suspect)

    def _suspect(self) -> None:
        self.suspect = True

    # -- sending ---------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> Lane | None:
        """Send or queue a new task (holding the lock).

        Returns:
            The worker that it was sent to. The caller has to wake it: with `Lane.wake`, or with `Lane.nudge`
            after releasing the lock. None if the task was queued; then see `is_look_due`.
        """
        ledger = self.ledger
        timeout = task.timeout
        if timeout is not None and timeout < self.shortest_timeout:
            self.shortest_timeout = timeout
        if not ledger.queued:
            lane = self._placement.choose(task.function)
            if lane is not None and lane.channel.inbox.try_put(task.record):
                ledger.send_new(lane.key, task)
                return lane
            ledger.submit(task)
            self.balancer.set_lows()
            self.balancer.on_queue()
            self._since_look = _LOOK_EVERY
        else:
            ledger.submit(task)
            self._since_look += 1
        return None

    def is_look_due(self) -> bool:
        """Whether the thread that has just queued a task should fetch outcomes, and so fill the inboxes."""
        if self._since_look < _LOOK_EVERY:
            return False
        self._since_look = 0
        return True

    def fill(self) -> None:
        """Send queued tasks to all workers that may have more (holding the lock)."""
        ledger = self.ledger
        balancer = self.balancer
        if ledger.queued or (ledger.under_way > 1 and self.roster.idle):
            with deferred_interrupts():
                balancer.send_queued()
        if ledger.under_way > 1 or balancer.lows_set:
            balancer.set_lows()
        if self.on_room is not None:
            self.on_room()

    def give_to_others(self, lane: Lane, settlements: Settlements) -> None:
        """Give what a worker has not begun to others (holding the lock, in the supervisor's thread)."""
        records = self.balancer.take_unbegun(lane)
        for ended in self.balancer.requeue(lane, [number for number, _ in records]):
            settlements.append((ended, RAISED, ending_error(ended, lane)))
        self.fill()

    def cancel(self, task: Task, settlements: Settlements, *, even_begun: bool = True) -> bool:
        """Keep a task from beginning (holding the lock, and with interrupts deferred).

        Returns:
            False if the task has begun, or may have. With `even_begun` it is then marked as cancelled, and
            the caller has to have it stopped; without, nothing has changed, and it goes on.
        """
        if self.ledger.end(task):
            if self.on_room is not None:
                self.on_room()
            return True
        if task.state != SENT:
            return True
        lane = self.lanes.get(task.worker)
        if lane is None:
            return True
        self.drain_lane(lane, settlements)
        if task.number not in lane.sent:
            self.fill()
            return True
        balancer = self.balancer
        records = balancer.take_unbegun(lane)
        others = [(number, record) for number, record in records if number != task.number]
        left = balancer.hand_on(lane, lane, others)
        found = len(others) < len(records)
        if found or even_begun:
            task.ending = CANCELLED
        if found or left:
            balancer.requeue(lane, [task.number, *left] if found else left)
            self.roster.note_if_idle(lane)
        # The worker may be idle now, and take what waits behind a task of another worker.
        self.fill()
        # If it was not found, the worker is running it, or has just finished it; then its outcome is dropped.
        return found

    # -- receiving -------------------------------------------------------------------------------------------

    def has_outcomes(self) -> bool:
        """Whether any outbox holds something (no lock needed)."""
        # A copy: lanes come and go under the lock.
        return any(not lane.channel.outbox.is_empty() for lane in list(self.lanes.values()))

    def outbox_words(self) -> list[tuple[memoryview[int], int, int]]:
        """For each outbox: its words, and the indices of its head and tail among them (no lock needed).

        For threads that check the outboxes again and again.
        """
        return [
            (lane.words, lane.channel.outbox.head_at, lane.channel.outbox.tail_at)
            for lane in list(self.lanes.values())
        ]

    def drain(self, settlements: Settlements) -> None:
        """Take all outcomes there are, and send queued tasks (holding the lock)."""
        found = suspect = self.suspect
        self.suspect = True
        for lane in list(self.lanes.values()):
            outbox = lane.channel.outbox
            words = outbox.words
            if suspect or words[outbox.tail_at] != words[outbox.head_at]:
                found = True
                self.drain_lane(lane, settlements)
        reconciled = not suspect or reconcile(self.ledger, self.roster, self.drain_lane, settlements)
        ledger = self.ledger
        # Even if nothing was found: the caller may be about to sleep until a worker rings, and one that is
        # idle does not.
        if found or ledger.under_way > 1 or ledger.queued or self.balancer.lows_set:
            self.fill()
        self.suspect = not reconciled

    def drain_lane(self, lane: Lane, settlements: Settlements) -> None:
        """Take the outcomes of one worker (holding the lock)."""
        if not lane.is_torn:
            try:
                self.receiver.receive(lane, settlements)
            except (TornRingError, struct.error):
                self.roster.condemn(lane)
        self.roster.note_if_idle(lane)

    # -- workers ---------------------------------------------------------------------------------------------

    def add(self, lane: Lane) -> None:
        """Add a worker (holding the lock)."""
        lane.sent = self.ledger.add_worker(lane.key)
        self.lanes[lane.key] = lane

    def bury(self, lane: Lane, settlements: Settlements) -> list[int]:
        """Remove a dead worker, and take the outcomes that it has left in its outbox (holding the lock).

        Returns:
            The tasks that it had begun and not finished: at most one, unless an exception of a signal handler
            has lost outcomes, or something has written over its inbox.
        """
        self.drain_lane(lane, settlements)
        # The lock of its inbox is not needed: no other process uses the inbox any more.
        if not TOTAL_STORE_ORDER:
            full_fence()
        try:
            unread = lane.unbegun()
        except TornRingError:
            # It cannot be known what it had begun, so everything counts as begun.
            unread = set[int]()
        begun = [number for number in lane.sent if number not in unread]
        self.lanes.pop(lane.key, None)
        self._placement.forget_favourite()
        self.roster.idle.pop(lane, None)
        return begun

    def check_stopped(self, lane: Lane, settlements: Settlements) -> None:
        """Set a worker aside while it is stopped by a signal, and give what it has not begun to others
        (holding the lock).

        If there is no other worker, it keeps its tasks, and goes on with them as soon as it is continued.
        """
        if lane.set_aside:
            if not is_stopped(lane.pid):
                lane.set_aside = False
                lane.update_ready()
                self.roster.note_if_idle(lane)
                self.fill()
        elif (
            lane.ready
            and any(other.ready for other in self.lanes.values() if other is not lane)
            and is_stopped(lane.pid)
        ):
            lane.set_aside = True
            lane.update_ready()
            # `note_if_idle` adds it again when it is continued.
            self.roster.idle.pop(lane, None)
            self.give_to_others(lane, settlements)

    def check_sane(self, lane: Lane) -> None:
        """Have a worker killed if some code in it has overwritten what it shares with the pool (holding the
        lock). Otherwise its task might never end, and nobody would be told.
        """
        if not (self.suspect or lane.doomed or lane.is_torn or is_sane(lane)):
            self.roster.condemn(lane)
