"""Who gets which task, and what has come back: everything that happens under the pool's one lock.

The dispatcher has the lock, and does whole steps; of what they consist is done by its parts: `placement`
(decisions), `balancer` (tasks on their way to workers, and back), `receiver` (what comes back), `recovery`
(what an exception has left half done).

Nothing here waits (except for an inbox's lock, which a worker holds for microseconds), and nothing here calls
foreign code: outcomes are collected under the lock and handed to their sinks by the caller after it is
released.
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
from mpkit.pool._engine.inbox import unbegun
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import CANCELLED, SENT, Ledger, Task
from mpkit.pool._engine.placement import Placement
from mpkit.pool._engine.receiver import Receiver
from mpkit.pool._engine.recovery import is_sane, reconcile
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.settlements import Settlements, ending_error
from mpkit.pool._protocol.channel import RAISED

__all__ = ["Dispatcher"]

#: How often a submitting thread looks after the workers itself while tasks are queued.
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
        #: Those of the roster.
        self.lanes: dict[int, Lane] = self.roster.lanes
        self._since_look = 0
        #: True while something is being done that an interrupt may leave half done.
        self.suspect: bool = False
        #: The shortest time limit of the tasks there are (or were, lately). Changed under the lock.
        self.shortest_timeout: float = NEVER
        #: Called when something has been sent, by threads that wait in `submit` (`max_pending`).
        self.on_room: Callable[[], None] | None = None

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: what comes through the rings is the parent's."""
        self.lock = InterruptibleLock()
        self.roster.forget_after_fork()
        self.lanes = self.roster.lanes

    def note_interruption(self) -> None:
        """An exception came in the middle of something: the next `drain` looks for what it left undone."""
        # Under the lock: a drain that another thread is in the middle of ends with clearing this.
        self.lock.run(self._suspect)

    def _suspect(self) -> None:
        self.suspect = True

    # -- sending ---------------------------------------------------------------------------------------------

    def submit(self, task: Task) -> Lane | None:
        """Send or queue a new task (holding the lock).

        Returns:
            Whom it was sent to, for `Lane.nudge` when the lock is free again. None when it was queued; then
            see `is_look_due`.
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
        """Whether whoever has just queued a task should look after the workers."""
        if self._since_look < _LOOK_EVERY:
            return False
        self._since_look = 0
        return True

    def fill(self) -> None:
        """Send queued tasks to all that may have more (holding the lock)."""
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
        """What a worker has not begun goes to those who are ready (holding the lock; in the supervisor)."""
        records = self.balancer.take_unbegun(lane)
        for ended in self.balancer.requeue(lane, [number for number, _ in records]):
            settlements.append((ended, RAISED, ending_error(ended, lane)))
        self.fill()

    def cancel(self, task: Task, settlements: Settlements, *, even_begun: bool = True) -> bool:
        """Keep a task from beginning (holding the lock, and with interrupts deferred).

        False when it has begun, and runs: it must be stopped. With `even_begun` false nothing has changed
        then, and it goes on.
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
        # The worker may idle now, and take what waits behind a task of another one.
        self.fill()
        # If not, the worker may have finished it in this very moment; then its outcome is dropped.
        return found

    # -- receiving -------------------------------------------------------------------------------------------

    def has_outcomes(self) -> bool:
        """Whether any outbox holds something (no lock needed)."""
        # A copy: lanes come and go under the lock.
        return any(not lane.channel.outbox.is_empty() for lane in list(self.lanes.values()))

    def outbox_words(self) -> list[tuple[memoryview[int], int, int]]:
        """Of each outbox: the words, and where its ends stand (no lock needed). For those who look often."""
        return [
            (lane.words, lane.channel.outbox.head_at, lane.channel.outbox.tail_at)
            for lane in list(self.lanes.values())
        ]

    def drain(self, settlements: Settlements) -> None:
        """Take all outcomes there are, and send on (holding the lock)."""
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
        # Also where nothing was found: whoever looks may be about to sleep until a worker that idles rings.
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
        """There is one more worker (holding the lock)."""
        lane.sent = self.ledger.add_worker(lane.key)
        self.lanes[lane.key] = lane

    def bury(self, lane: Lane, settlements: Settlements) -> list[int]:
        """A worker is dead: take what it left behind (holding the lock).

        Returns:
            The tasks that it had begun and not finished: at most one, unless an interrupt has lost outcomes.
        """
        self.drain_lane(lane, settlements)
        # Nobody but us touches its inbox any more, whoever holds the lock.
        if not TOTAL_STORE_ORDER:
            full_fence()
        try:
            unread = unbegun(lane)
        except TornRingError:
            # Nobody knows what it had begun.
            unread = set[int]()
        begun = [number for number in lane.sent if number not in unread]
        self.lanes.pop(lane.key, None)
        self._placement.forget_favourite()
        self.roster.idle.pop(lane, None)
        return begun

    def look_whether_stopped(self, lane: Lane, settlements: Settlements) -> None:
        """What a worker has not begun goes to others while it is stopped by a signal (holding the lock).

        Only while there is somebody else; one that is alone goes on with it as soon as it is continued.
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
            # It goes again to the idle ones when it is continued.
            self.roster.idle.pop(lane, None)
            self.give_to_others(lane, settlements)

    def look_whether_sane(self, lane: Lane) -> None:
        """Have a worker killed that nobody would hear of again, because some code in it has written over its
        words (holding the lock).
        """
        if not (self.suspect or lane.doomed or lane.is_torn or is_sane(lane)):
            self.roster.condemn(lane)
