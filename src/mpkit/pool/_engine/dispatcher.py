"""Who gets which task, and what has come back: everything that happens under the pool's one lock.

Short tasks are sent ahead in batches, so that a worker always has about `AHEAD_NS` of work and the parent can
sleep meanwhile; long ones are not. What a stalled worker has not begun is taken back when another one idles.

Nothing here waits (except for an inbox's lock, which a worker holds for microseconds), and nothing here calls
foreign code: outcomes are collected under the lock and handed to their sinks by the caller after it is
released.
"""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable
from typing import Any

from mpkit._platform.processes import identity
from mpkit._platform.processes.stat_file import is_stopped
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.queues.ring import TornRingError
from mpkit.errors import TaskCancelled, TaskTimeout, WorkerMemoryExceeded
from mpkit.pool._engine.lane import Lane, Stop
from mpkit.pool._engine.ledger import CANCELLED, SENT, TIMED_OUT, TOO_BIG, Chunk, Ledger, Task
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
    LOW,
    NONE,
    PART,
    RAISED,
    RESULT_HEAD,
    SLEEPING,
    STARTED,
    VALUE,
    Barrier,
    ring_bell,
)

#: Records taken out of one outbox in one go.
_BATCH = 512
#: More records than an inbox can hold.
_ALL = 1 << 20
#: How long the lock of an inbox is waited for. A worker that is ready to run needs it for a microsecond.
_INBOX_SECONDS = 5.0
#: Clocks may differ a little from core to core, and no more than this.
_FUTURE_NS = 1_000_000_000
#: How often a submitting thread looks after the workers itself while tasks are queued.
_LOOK_EVERY = 64


#: What is to be told to sinks, once the lock is free: (task, kind, data).
Settlements = list[tuple[Task, int, Any]]


class Dispatcher:
    """The pool's lock, ledger and lanes."""

    def __init__(self) -> None:
        self.lock: seam.InterruptibleLock = seam.InterruptibleLock()
        self.ledger: Ledger = Ledger()
        self.lanes: dict[int, Lane] = {}
        #: Lanes with nothing to do, the one that became so last on top: its worker is still awake.
        #: A dictionary as an ordered set, from which lanes are taken and to which they are added in one step.
        self.idle: dict[Lane, None] = {}
        #: Called, under the lock, with each log record of a worker: those of one come in order.
        self.on_log: Callable[[bytes], object] = do_nothing
        #: Called, under the lock, when tasks begin to queue: somebody has to send them later.
        self.on_queue: Callable[[], None] = do_nothing
        self._barrier = Barrier()
        self._turn = 0
        # The one that the last task was sent ahead to: as long as it may have more, nobody else is asked.
        self._favourite: Lane | None = None
        #: Whether workers have been told to ring when they run low.
        self.lows_set: bool = False
        self._since_look = 0
        #: True while something is being done that an interrupt may leave half done.
        self.suspect: bool = False
        self.hellos: int = 0
        #: The shortest time limit of the tasks there are (or were, lately). Changed under the lock.
        self.shortest_timeout: float = NEVER
        #: Called when something has been sent, by threads that wait in `submit` (`max_pending`).
        self.on_room: Callable[[], None] | None = None
        #: Tasks that were being stopped and have ended, whose workers go on.
        self.stopped: deque[tuple[Lane, Stop]] = deque()
        #: Called, under the lock, when there is something for the supervisor to do: a worker takes no more
        #: tasks by its own choice, or is torn; or a task is one of `stopped`.
        self.on_worker: Callable[[], None] = do_nothing

    def forget_after_fork(self) -> None:
        """In a fork of the pool's process: what comes through the rings is the parent's."""
        self.lock = seam.InterruptibleLock()
        self.lanes = {}
        self.idle = {}

    def add(self, lane: Lane) -> None:
        """There is one more worker (holding the lock)."""
        lane.sent = self.ledger.add_worker(lane.key)
        self.lanes[lane.key] = lane

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
            Whom it was sent to, for `nudge` when the lock is free again. None when it was queued; then see
            `is_look_due`.
        """
        ledger = self.ledger
        timeout = task.timeout
        if timeout is not None and timeout < self.shortest_timeout:
            self.shortest_timeout = timeout
        if not ledger.queued:
            lane = self._lane_for(task)
            if lane is not None and lane.channel.inbox.try_put(task.record):
                ledger.send_new(lane.key, task)
                return lane
            ledger.submit(task)
            self._set_lows()
            self.on_queue()
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

    def nudge(self, lane: Lane) -> None:
        """`wake`, for callers that have given the lock back since they put the record there."""
        if not TOTAL_STORE_ORDER:
            # Giving the lock back is a full barrier on x86 only, where it is an atomic exchange.
            full_fence()
        words = lane.words
        if words[SLEEPING]:
            words[SLEEPING] = 0
            ring_bell(lane.channel.wake)

    def _lane_for(self, task: Task) -> Lane | None:
        """A lane that may have one more task of this kind."""
        idle = self.idle
        while idle:
            lane, _ = idle.popitem()
            if lane.ready and not lane.sent and (lane.tasks is None or lane.room() > 0):
                return lane
        ahead = task.function.ahead
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
        lanes = list(self.lanes.values())
        for turn in range(self._turn, self._turn + len(lanes)):
            lane = lanes[turn % len(lanes)]
            if lane.ready and len(lane.sent) < ahead and lane.room() > 0:
                self._turn = turn % len(lanes)
                self._favourite = lane
                return lane
        self._turn += 1
        return None

    def wake(self, lane: Lane) -> None:
        """Wake a worker that sleeps: there is something in its inbox, or room in its outbox."""
        if TOTAL_STORE_ORDER:
            # Elsewhere `nudge` has one.
            self._barrier()
        self.nudge(lane)

    def fill(self) -> None:
        """Send queued tasks to all that may have more (holding the lock)."""
        ledger = self.ledger
        if ledger.queued or (self.idle and ledger.under_way > 1):
            # Between a ring and the ledger an interrupt would have a task run twice, or never.
            with deferred_interrupts():
                self._move()
        if ledger.under_way > 1 or self.lows_set:
            self._set_lows()
        if self.on_room is not None:
            self.on_room()

    def _move(self) -> None:
        ledger = self.ledger
        while self.idle and ledger.queued:
            lane, _ = self.idle.popitem()
            if lane.ready and not lane.sent:
                self._send(lane, 1)
        if ledger.queued:
            lanes = [lane for lane in self.lanes.values() if lane.ready]
            # Not all to the first: what is left is shared out evenly.
            share = -(-ledger.queued // (len(lanes) or 1))
            for lane in lanes:
                self._send(lane, share)
        if self.idle and ledger.under_way > 1 and not ledger.queued:
            self._share_out()

    def _send(self, lane: Lane, most: int) -> None:
        """Send up to `most` tasks from the queue, as far as it makes sense to send them ahead."""
        ledger = self.ledger
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
            self.wake(lane)

    def _share_out(self) -> None:
        """Take back what busy workers have not begun, for those that idle."""
        while self.idle:
            thief = next(reversed(self.idle))
            if not thief.ready or thief.sent or thief.room() <= 0:
                del self.idle[thief]
                continue
            victim = max(self.lanes.values(), key=_load, default=None)
            if victim is None or victim is thief or len(victim.sent) < 2 or victim.channel.inbox.is_empty():
                return
            records = self.take_records(victim)
            if not records:
                return
            del self.idle[thief]
            # The oldest go to the one that is free now.
            cut = min((len(records) + 1) // 2, thief.room())
            left = self._hand_on(victim, thief, records[:cut])
            left += self._hand_on(victim, victim, records[cut:])
            if left:
                # A task among them that has ended was cancelled, and whoever waited for it has been told.
                self.requeue(victim, left)
                return

    def _hand_on(self, victim: Lane, target: Lane, records: list[tuple[int, bytes]]) -> list[int]:
        """Put records that were taken out of the inbox of `victim` into that of `target`, which is empty.

        Returns:
            The tasks that are with neither of them now. A ring takes again what came out of it; another one,
            though empty, may not: no record goes round its end, and its index may stand anywhere.
        """
        left: list[int] = []
        try_put = target.channel.inbox.try_put
        for number, record in records:
            task = victim.sent.get(number)
            if task is None:
                continue
            # Behind one that did not fit no other goes: they stay in order.
            if left or task.ending or not try_put(record):
                left.append(number)
                continue
            if target is not victim:
                # In this order: after an exception in between it belongs to the one that `worker` says.
                target.sent[number] = task
                task.worker = target.key
                del victim.sent[number]
        if len(left) < len(records):
            self.wake(target)
        return left

    def requeue(self, lane: Lane, numbers: list[int]) -> list[Task]:
        """Tasks were taken out of a worker's inbox, and wait again before all others.

        Returns:
            Those that were to be stopped: they have ended instead.
        """
        ended = self.ledger.take_back(lane.key, numbers)
        if len(ended) < len(numbers):
            # Whoever would send them later may sleep, and a worker that is not told does not ring for more.
            self.on_queue()
        return ended

    def take_records(self, lane: Lane) -> list[tuple[int, bytes]]:
        """Everything that a worker has not begun, out of its inbox: (number, record). Empty if the worker is
        dead.
        """
        if lane.doomed:
            # Perhaps locked for good.
            return []
        try:
            if not self.lock_inbox(lane):
                return []
            records = lane.channel.inbox.try_get_many(_ALL)
        except TornRingError:
            self._condemn(lane)
            return []
        finally:
            lane.unlock_inbox()
        return [(_number_of(record), record) for record in records]

    def lock_inbox(self, lane: Lane) -> bool:
        """Keep a worker from taking a record; False when it is dead, stopped by a signal, or kept from it for
        good.
        """
        if lane.doomed:
            return False
        if lane.lock_inbox():
            return True
        # The worker holds it for a microsecond, unless it died or was stopped just there. (That it is stopped
        # cannot be seen everywhere.)
        deadline = CLOCK.monotonic() + _INBOX_SECONDS
        while not lane.lock_inbox(0.01):
            if (
                lane.identity is None
                or not identity.is_alive(lane.identity)
                or is_stopped(lane.identity.pid)
                or CLOCK.monotonic() > deadline
            ):
                return False
        return True

    def look_whether_stopped(self, lane: Lane, settlements: Settlements) -> None:
        """What a worker has not begun goes to others while it is stopped by a signal (holding the lock).

        Only while there is somebody else; one that is alone goes on with it as soon as it is continued.
        """
        if lane.set_aside:
            if not is_stopped(lane.pid):
                lane.set_aside = False
                lane.update_ready()
                self._note_if_idle(lane)
                self.fill()
        elif (
            lane.ready
            and any(other.ready for other in self.lanes.values() if other is not lane)
            and is_stopped(lane.pid)
        ):
            lane.set_aside = True
            lane.update_ready()
            # It goes again to the idle ones when it is continued.
            self.idle.pop(lane, None)
            self.give_to_others(lane, settlements)

    def look_whether_sane(self, lane: Lane) -> None:
        """Have a worker killed that nobody would hear of again, because some code in it has written over its
        words (holding the lock).
        """
        if self.suspect or lane.doomed or lane.is_torn:
            return
        try:
            lost = self._handed_in(lane)
        except TornRingError:
            self._condemn(lane)
            return
        if not lane.channel.outbox.is_empty():
            lost.clear()
        task = lane.sent.get(lane.running())
        # Without a limit no clock is asked: a test of the program may have replaced that of this process, but
        # not the worker's (freezegun does).
        limited = task is not None and task.timeout is not None
        begins_later = limited and lane.words[STARTED] > CLOCK.monotonic_ns() + _FUTURE_NS
        # Twice: on machines with weak memory order an outcome may be seen a little later than it should.
        if lost & lane.lost or begins_later:
            self._condemn(lane)
        lane.lost = lost

    def _handed_in(self, lane: Lane) -> set[int]:
        """The tasks of a worker that have an outcome in its outbox; if that is empty, nobody has them.

        A task goes from the inbox into the row and then into the outbox, and is in the next one before it
        leaves the one before. So whoever looks at them in this order, the outbox last, misses none.

        Raises:
            TornRingError: what is in its inbox cannot be the records of tasks.
        """
        waiting = {_number_of(record) for record in lane.channel.inbox.peek_many(_ALL)[0]}
        running = lane.running()
        return {number for number in lane.sent if number != running and number not in waiting}

    def give_to_others(self, lane: Lane, settlements: Settlements) -> None:
        """What a worker has not begun goes to those who are ready (holding the lock; in the supervisor)."""
        records = self.take_records(lane)
        for ended in self.requeue(lane, [number for number, _ in records]):
            settlements.append((ended, RAISED, ending_error(ended, lane)))
        self.fill()

    def _set_lows(self) -> None:
        """Tell each worker when to ring for more."""
        self.lows_set = False
        lanes = self.lanes.values()
        queued = self.ledger.queued
        spare = not queued and any(len(lane.sent) > 1 for lane in lanes)
        for lane in lanes:
            if queued:
                # Half of what it has: it works on the other half while the parent wakes and sends more.
                low = 1 + (len(lane.sent) >> 1)
            elif spare:
                low = 1
            else:
                low = 0
            if low:
                self.lows_set = True
            if low != lane.low:
                lane.low = low
                lane.words[LOW] = low

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
        reconciled = not suspect or self._reconcile(settlements)
        ledger = self.ledger
        # Also where nothing was found: whoever looks may be about to sleep until a worker that idles rings.
        if found or ledger.under_way > 1 or ledger.queued or self.lows_set:
            self.fill()
        self.suspect = not reconciled

    def drain_lane(self, lane: Lane, settlements: Settlements) -> None:
        """Take the outcomes of one worker (holding the lock)."""
        if not lane.is_torn:
            try:
                self._drain_outbox(lane, settlements)
            except (TornRingError, struct.error):
                self._condemn(lane)
        self._note_if_idle(lane)

    def _condemn(self, lane: Lane) -> None:
        """What a ring of a worker holds is not what belongs there: some code in it has written where it
        should not. It is killed (by the supervisor: that may take a moment), and what it had is settled when
        it is dead, as with any death.
        """
        lane.is_torn = True
        lane.update_ready()
        lane.pending = None
        self.on_worker()

    def _drain_outbox(self, lane: Lane, settlements: Settlements) -> None:
        outbox = lane.channel.outbox
        ledger = self.ledger
        key = lane.key
        sent = lane.sent
        unpack = RESULT_HEAD.unpack_from
        while True:
            # What an interrupt leaves undone is done again, from the first of them: nothing leaves the ring
            # before it is here, and each is told before the ledger forgets it (whoever is told twice takes
            # the first).
            if lane.pending is None:
                lane.pending = outbox.peek_many(_BATCH)
            records, after = lane.pending
            outbox.drop_to(after)
            for record in records:
                number, run_ns, kind = unpack(record)
                if kind <= LAST_RESULT:
                    task = sent.get(number)
                    if task is None:
                        payload.drop_outcome(kind, record)
                        continue
                    if task.ending:
                        self._drain_stopped(lane, task, kind, record, settlements)
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
                    self._drain_part(lane, number, run_ns, kind, record, settlements)
                elif kind == LOG:
                    self.on_log(record)
                elif kind == HELLO:
                    lane.greeted = True
                    lane.update_ready()
                    self.hellos += 1
                elif kind == GOODBYE:
                    self._note_leaving(lane)
                elif kind == BAD_INITIALIZER and not lane.greeted:
                    lane.bad_initializer = record
                    self._note_leaving(lane)
                else:
                    raise TornRingError
            lane.pending = None
            if lane.words[SLEEPING] == 2:
                # It waits for the room that there is now.
                lane.words[SLEEPING] = 0
                ring_bell(lane.channel.wake)
            if len(records) < _BATCH:
                break

    def _drain_stopped(
        self, lane: Lane, task: Task, kind: int, record: bytes, settlements: Settlements
    ) -> None:
        payload.drop_outcome(kind, record)
        stop = lane.stop
        ours = stop is not None and stop.number == task.number and not lane.doomed
        if ours and stop is not None and stop.stage == 0:
            # The supervisor is just reading its stack, and goes on from there.
            stop.ended = task
        else:
            settlements.append((task, RAISED, ending_error(task, lane)))
        self.ledger.finish(lane.key, task.number, False)
        if ours and stop is not None and stop.ended is None:
            self.stop_is_over(lane)

    def _drain_part(
        self, lane: Lane, number: int, reached: int, kind: int, record: bytes, settlements: Settlements
    ) -> None:
        chunk = lane.sent.get(number)
        inner = VALUE if kind == PART else BIG_VALUE
        if not isinstance(chunk, Chunk) or chunk.ending or reached <= chunk.done:
            payload.drop_outcome(inner, record)
            return
        length = reached - chunk.done
        if inner == BIG_VALUE:
            # As in `drain_lane`.
            with deferred_interrupts():
                settlements.append((chunk, PART, (chunk.done, *payload.adopt(inner, record), length)))
                chunk.done = reached
        else:
            settlements.append((chunk, PART, (chunk.done, inner, record, length)))
            chunk.done = reached

    def _note_if_idle(self, lane: Lane) -> None:
        if not lane.sent and lane.ready:
            # Where it stood, if it was there already.
            self.idle[lane] = None

    def _note_leaving(self, lane: Lane) -> None:
        lane.leaving = True
        lane.update_ready()
        lane.left_at = lane.left_at or CLOCK.monotonic()
        # What it has not begun is taken back there: whoever drains may be in the middle of something.
        self.on_worker()

    def stop_is_over(self, lane: Lane) -> None:
        """A task that was being stopped has ended, and its worker is fit for others (holding the lock)."""
        stop = lane.stop
        if stop is not None:
            # The worker has not begun another task before this: none was sent.
            stop.over_at = CLOCK.monotonic_ns()
            self.stopped.append((lane, stop))
            self.on_worker()
        lane.stop = None
        lane.update_ready()
        self._note_if_idle(lane)

    def _reconcile(self, settlements: Settlements) -> bool:
        """An interrupt came in between: find what it left undone.

        Returns:
            Whether that is so of all workers; False when one could not be kept from beginning a task.
        """
        with deferred_interrupts():
            for lane in self.lanes.values():
                lane.update_ready()
                for number in [number for number, task in lane.sent.items() if task.worker != lane.key]:
                    del lane.sent[number]
            self.ledger.recount()
            done = [lane.doomed or self._reconcile_lane(lane, settlements) for lane in self.lanes.values()]
        return all(done)

    def _reconcile_lane(self, lane: Lane, settlements: Settlements) -> bool:
        # The exception may have come just when this was locked.
        lane.unlock_inbox()
        try:
            if not self.lock_inbox(lane):
                return False
            handed_in = self._handed_in(lane)
        except TornRingError:
            self._condemn(lane)
            return False
        finally:
            lane.unlock_inbox()
        # Under the lock of its inbox a worker begins nothing, and it hands in an outcome before it says that
        # it runs nothing. So what was not there, and has no outcome now, no worker has. Ctrl-C is kept from
        # where that could happen; the handlers of other signals, which may raise as well, are not.
        self.drain_lane(lane, settlements)
        for number in sorted(handed_in):
            task = self.ledger.finish(lane.key, number, False)
            if task is not None:
                text = f"task {number} was lost when the handler of a signal raised an exception"
                settlements.append((task, RAISED, TaskCancelled(text)))
        # Whoever was interrupted may just have been about to ring.
        lane.words[SLEEPING] = 0
        ring_bell(lane.channel.wake)
        self._note_if_idle(lane)
        return True

    # -- taking away -----------------------------------------------------------------------------------------

    def cancel(self, task: Task, settlements: Settlements, *, even_begun: bool = True) -> bool:
        """Keep a task from beginning (holding the lock, and with interrupts deferred).

        False when it has begun, and runs: it must be stopped. With `even_begun` false nothing has changed
        then, and it goes on.
        """
        ledger = self.ledger
        if ledger.end(task):
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
        records = self.take_records(lane)
        others = [(number, record) for number, record in records if number != task.number]
        left = self._hand_on(lane, lane, others)
        found = len(others) < len(records)
        if found or even_begun:
            task.ending = CANCELLED
        if found or left:
            self.requeue(lane, [task.number, *left] if found else left)
            self._note_if_idle(lane)
        # The worker may idle now, and take what waits behind a task of another one.
        self.fill()
        # If not, the worker may have finished it in this very moment; then its outcome is dropped.
        return found

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
            records, _ = lane.channel.inbox.peek_many(_ALL)
        except TornRingError:
            # Nobody knows what it had begun.
            records = []
        unread = {_number_of(record) for record in records}
        begun = [number for number in lane.sent if number not in unread]
        self.lanes.pop(lane.key, None)
        self._favourite = None
        self.idle.pop(lane, None)
        return begun


def ending_error(task: Task, lane: Lane) -> BaseException:
    """The error of a task that was stopped."""
    stop = lane.stop
    stack = stop.stack if stop is not None and stop.number == task.number else ""
    if task.ending == TIMED_OUT:
        return TaskTimeout(task_id=task.number, pid=lane.pid, timeout=task.timeout, stack=stack or None)
    if task.ending == TOO_BIG:
        limit = None if stop is None else stop.limit
        return WorkerMemoryExceeded(task_id=task.number, pid=lane.pid, rss_bytes=lane.rss_bytes, limit=limit)
    return cancelled_error(task)


def cancelled_error(task: Task) -> TaskCancelled:
    """The error of a task that was cancelled."""
    return TaskCancelled(f"task {task.number} was cancelled")


def do_nothing(*_: object) -> None:
    """What is called where there is nobody to tell."""


def _number_of(record: bytes) -> int:
    """The task in a record of an inbox."""
    return int.from_bytes(record[:8], "little")


def _load(lane: Lane) -> int:
    return len(lane.sent)
