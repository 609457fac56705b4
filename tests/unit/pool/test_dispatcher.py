"""The dispatcher, with channels that no worker reads: it always knows where each task is."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.errors import TaskCancelled, WorkerCrashed
from mpkit.pool._engine import dispatcher as _dispatcher
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane, Stop
from mpkit.pool._engine.ledger import CANCELLED, TIMED_OUT, Death, Task
from mpkit.pool._engine.losses import settle_loss
from mpkit.pool._engine.recovery import reconcile
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import (
    BIG_VALUE,
    DONE,
    ERROR,
    IN_TAIL,
    LOW,
    NONE,
    RAISED,
    RESULT_HEAD,
    SLEEPING,
    SLEEPS_FOR_RECORDS,
    SLEEPS_FOR_ROOM,
    STARTED,
    TASK,
    TASK_HEAD,
    VALUE,
    Channel,
)

_DEATH = Death(1, -9, "SIGKILL", None, None, False)


class _Sink:
    _can_be_told_again = True

    def _sent(self, task: Task) -> None:
        """Do nothing."""

    def _next_item(self) -> None:
        return None

    def _settle(self, task: Task, kind: int, data: object) -> None:
        """Do nothing."""


class _Bench:
    """A dispatcher, and workers that consist only of their channels."""

    def __init__(self, workers: int) -> None:
        #: How often the dispatcher asked to be called again later.
        self.asked = 0
        self.dispatcher = Dispatcher()
        self.dispatcher.balancer.on_queue = self._ask
        self.function = Function("f", b"")
        self.function.ahead = 256
        self.lanes = [self._add(key) for key in range(workers)]
        self._next = 1

    def _ask(self) -> None:
        self.asked += 1

    def _add(self, key: int) -> Lane:
        process: Any = None
        lane = Lane(
            key, Channel.create(), process, None, stack_pipe=None, maxtasksperchild=None, oom_kills=None
        )
        lane.greeted = lane.ready = True
        self.dispatcher.add(lane)
        return lane

    def new(self, size: int = 16) -> Task:
        """A task with a record of `size` bytes."""
        number, self._next = self._next, self._next + 1
        return Task(number, _Sink(), TASK_HEAD.pack(number, 0, 0).ljust(size, b"x"), self.function)

    def send(self, lane: Lane, size: int) -> Task:
        """Put a task with a record of `size` bytes into a worker's inbox."""
        task = self.new(size)
        assert lane.channel.inbox.try_put(task.record)
        self.dispatcher.ledger.send_new(lane.key, task)
        return task

    def begin(self, lane: Lane) -> None:
        """Take the first record out of a worker's inbox, as the worker does when it begins a task."""
        [record] = lane.channel.inbox.try_get_many(1)
        lane.words[TASK] = int.from_bytes(record[:8], "little")

    def waiting(self, lane: Lane) -> list[int]:
        """The tasks in a worker's inbox."""
        return [int.from_bytes(record[:8], "little") for record in lane.channel.inbox.peek_many(1000)[0]]

    def close(self) -> None:
        for lane in self.lanes:
            lane.channel.discard()


@pytest.fixture
def bench() -> Iterator[_Bench]:
    bench = _Bench(2)
    yield bench
    bench.close()


@pytest.mark.parametrize("how", ["a record without a head", "a length", "an end", "a kind", "a name"])
def test_a_torn_outbox_is_left_alone(bench: _Bench, how: str) -> None:
    lane, other = bench.lanes
    task = bench.send(lane, 16)
    outbox = lane.channel.outbox
    kinds = {"an end": NONE, "a kind": RAISED, "a name": BIG_VALUE}
    outbox.try_put(RESULT_HEAD.pack(task.number, 0, kinds[how]) if how in kinds else b"short")
    if how == "a length":
        lane.words[outbox.start] = 1 << 40
    elif how == "an end":
        lane.words[outbox.tail_at] += 7
    settlements: Settlements = []
    with bench.dispatcher.lock:
        bench.dispatcher.drain(settlements)
        bench.dispatcher.drain(settlements)
    assert lane.is_torn
    assert not lane.ready
    assert not other.is_torn
    assert (settlements, list(lane.sent)) == ([], [task.number])


def test_an_inbox_that_an_exception_has_left_locked_is_unlocked(bench: _Bench) -> None:
    lane = bench.lanes[0]
    assert lane.try_lock_inbox()
    bench.dispatcher.note_interruption()
    with bench.dispatcher.lock:
        bench.dispatcher.drain([])
    assert not lane.inbox_locks
    assert lane.channel.lock.acquire(False)
    assert not lane.try_lock_inbox()
    lane.channel.lock.release()
    lane.unlock_inbox()
    assert lane.try_lock_inbox(0.01)
    lane.unlock_inbox()


def test_the_inbox_of_a_doomed_worker_stays_locked(bench: _Bench) -> None:
    """If a cancel released the lock, the worker could begin another task just before it is killed."""
    lane = bench.lanes[0]
    task = bench.send(lane, 16)
    with bench.dispatcher.lock:
        assert lane.lock_inbox()
        lane.doomed = True
        assert not bench.dispatcher.cancel(task, [])
    assert lane.inbox_locks
    assert not lane.channel.lock.acquire(False)


@pytest.mark.parametrize("kind, ended", [(NONE, (1, 0)), (VALUE, (1, 0)), (ERROR, (0, 1))])
def test_what_a_task_ended_with_is_counted(bench: _Bench, kind: int, ended: tuple[int, int]) -> None:
    lane = bench.lanes[0]
    task = bench.send(lane, 16)
    lane.channel.outbox.try_put(RESULT_HEAD.pack(task.number, 0, kind))
    with bench.dispatcher.lock:
        bench.dispatcher.drain([])
    ledger = bench.dispatcher.ledger
    assert (ledger.succeeded, ledger.failed) == ended


def test_a_queued_task_will_be_sent_by_somebody(bench: _Bench) -> None:
    """If no thread waits for outcomes, it is sent when a worker rings because its inbox runs low."""
    dispatcher = bench.dispatcher
    for lane in bench.lanes:
        bench.send(lane, 16)
        bench.begin(lane)
    bench.function.ahead = 1
    with dispatcher.lock:
        assert dispatcher.submit(bench.new()) is None
    assert [lane.words[LOW] for lane in bench.lanes] == [1, 1]
    assert dispatcher.balancer.lows_set
    assert bench.asked
    assert dispatcher.is_look_due()
    assert not dispatcher.is_look_due()


def _is_woken(lane: Lane) -> bool:
    """Whether a worker that was asleep has been woken."""
    return not lane.words[SLEEPING] and lane.channel.wake.acquire(False)


def test_a_sleeping_worker_is_woken_for_a_task_from_the_queue(bench: _Bench) -> None:
    lane, other = bench.lanes
    other.leaving = True
    other.update_ready()
    lane.words[SLEEPING] = SLEEPS_FOR_RECORDS
    bench.dispatcher.ledger.submit(bench.new())
    with bench.dispatcher.lock:
        bench.dispatcher.fill()
    assert lane.sent
    assert _is_woken(lane)


def test_a_sleeping_worker_is_woken_for_tasks_of_another_one(bench: _Bench) -> None:
    busy, thief = bench.lanes
    for _ in range(4):
        bench.send(busy, 16)
    bench.begin(busy)
    thief.words[SLEEPING] = SLEEPS_FOR_RECORDS
    bench.dispatcher.roster.note_if_idle(thief)
    with bench.dispatcher.lock:
        bench.dispatcher.fill()
    assert list(thief.sent) == [2, 3]
    assert _is_woken(thief)


@pytest.mark.parametrize("why", ["not ready", "has a task", "no task left"])
def test_nothing_is_stolen_for_a_worker_that_is_not_idle_any_more(bench: _Bench, why: str) -> None:
    """It would not begin the task, or not at once."""
    busy, thief = bench.lanes
    tasks = [bench.send(busy, 16) for _ in range(4)]
    bench.begin(busy)
    bench.dispatcher.roster.note_if_idle(thief)
    if why == "not ready":
        thief.leaving = True
        thief.update_ready()
    elif why == "has a task":
        tasks.append(bench.send(thief, 16))
    else:
        thief.maxtasksperchild = thief.words[DONE] = 3
    before = dict(thief.sent)
    with bench.dispatcher.lock:
        bench.dispatcher.fill()
    assert thief.sent == before
    assert not bench.dispatcher.roster.idle
    _assert_each_is_somewhere(bench, tasks)


def test_a_worker_that_waits_for_room_in_its_outbox_is_woken_when_there_is_some(bench: _Bench) -> None:
    lane = bench.lanes[0]
    task = bench.send(lane, 16)
    lane.channel.outbox.try_put(RESULT_HEAD.pack(task.number, 0, NONE))
    lane.words[SLEEPING] = SLEEPS_FOR_ROOM
    with bench.dispatcher.lock:
        bench.dispatcher.drain([])
    assert _is_woken(lane)


def test_after_an_exception_all_workers_are_looked_after_even_if_one_cannot_be(bench: _Bench) -> None:
    """A worker that holds the lock of its inbox and does not go on (it is stopped) is tried again later."""
    dispatcher = bench.dispatcher
    stuck, other = bench.lanes
    tasks = [bench.send(lane, 16) for lane in bench.lanes]
    for lane in bench.lanes:
        # Its task is lost: in neither of its rings, and not running.
        assert lane.channel.inbox.try_get_many(1)
        lane.words[SLEEPING] = SLEEPS_FOR_RECORDS
    assert stuck.channel.lock.acquire(False)
    dispatcher.note_interruption()
    ended: list[list[int]] = []
    for _ in range(3):
        settlements: Settlements = []
        with dispatcher.lock:
            dispatcher.drain(settlements)
        assert all(isinstance(error, TaskCancelled) for _, _, error in settlements)
        ended.append([task.number for task, _, _ in settlements])
        if len(ended) == 1:
            assert _is_woken(other)
            stuck.channel.lock.release()
    assert ended == [[tasks[1].number], [tasks[0].number], []]
    assert _is_woken(stuck)
    assert not dispatcher.suspect
    assert dispatcher.ledger.live == 0


def test_an_outcome_that_comes_while_the_harm_of_an_exception_is_repaired_counts(bench: _Bench) -> None:
    """The worker has just taken the last task out of its inbox, run it, and handed in its outcome."""
    dispatcher, lane = bench.dispatcher, bench.lanes[0]
    task = bench.send(lane, 16)
    settlements: Settlements = []
    bench.begin(lane)
    lane.words[TASK] = 0
    lane.channel.outbox.try_put(RESULT_HEAD.pack(task.number, 0, NONE))
    with dispatcher.lock:
        assert reconcile(dispatcher.ledger, dispatcher.roster, dispatcher.drain_lane, settlements)
    assert [(ended, kind) for ended, kind, _ in settlements] == [(task, NONE)]
    assert (dispatcher.ledger.succeeded, dispatcher.ledger.live) == (1, 0)


def test_a_torn_inbox_is_noticed_while_the_harm_of_an_exception_is_repaired(bench: _Bench) -> None:
    lane = bench.lanes[0]
    bench.send(lane, 16)
    lane.words[IN_TAIL] += 5
    bench.dispatcher.note_interruption()
    with bench.dispatcher.lock:
        bench.dispatcher.drain([])
    assert lane.is_torn
    assert not lane.inbox_locks


def test_tasks_of_a_dead_worker_whose_inbox_is_torn_have_crashed(bench: _Bench) -> None:
    """It cannot be known which of them it had begun, so none may be run again. But each of them ends."""
    lane, other = bench.lanes
    tasks = [bench.send(lane, 16) for _ in range(3)]
    kept = bench.send(other, 16)
    lane.words[IN_TAIL] += 5
    settlements: Settlements = []
    with bench.dispatcher.lock:
        settle_loss(bench.dispatcher, lane, _DEATH, itertools.count(100), settlements)
    assert sorted(task.number for task, _, _ in settlements) == [task.number for task in tasks]
    assert all(isinstance(error, WorkerCrashed) for _, _, error in settlements)
    ledger = bench.dispatcher.ledger
    assert (ledger.crashed + ledger.failed, ledger.queued, ledger.under_way) == (3, 0, 1)
    assert list(bench.dispatcher.lanes.values()) == [other]
    assert list(other.sent) == [kept.number]


def test_a_cancelled_task_that_is_taken_from_its_worker_ends(bench: _Bench) -> None:
    """It was cancelled when its worker could not be kept from beginning it."""
    lane, other = bench.lanes
    tasks = [bench.send(lane, 16) for _ in range(3)]
    bench.begin(lane)
    tasks[1].ending = CANCELLED
    settlements: Settlements = []
    with bench.dispatcher.lock:
        bench.dispatcher.give_to_others(lane, settlements)
    assert [(task, type(error)) for task, _, error in settlements] == [(tasks[1], TaskCancelled)]
    assert bench.dispatcher.ledger.cancelled == 1
    _assert_each_is_somewhere(bench, [tasks[0], tasks[2]])
    # The other worker, or the same one: whichever has room.
    assert tasks[2].number in [*lane.sent, *other.sent]


def test_the_stop_of_a_task_that_ends_while_its_stack_is_written_waits_for_the_stack(bench: _Bench) -> None:
    """The error of a time limit says where the task was; the worker gets no other task before that."""
    lane = bench.lanes[0]
    task = bench.send(lane, 16)
    bench.begin(lane)
    task.ending = TIMED_OUT
    stop = lane.stop = Stop(task.number, None)
    lane.update_ready()
    lane.channel.outbox.try_put(RESULT_HEAD.pack(task.number, 0, NONE))
    lane.words[TASK] = 0
    settlements: Settlements = []
    with bench.dispatcher.lock:
        bench.dispatcher.drain(settlements)
    assert not settlements
    assert stop.ended is task
    assert lane.stop is stop
    assert not lane.ready


def _stand_at(lane: Lane, eighths: int) -> None:
    """Move the index of an empty inbox to so many eighths of its size."""
    ring = lane.channel.inbox
    for _ in range(eighths):
        assert ring.try_put(bytes((ring.capacity // 8 - 1) << 3))
    ring.try_get_many(eighths)
    assert ring.is_empty()


def _assert_each_is_somewhere(bench: _Bench, tasks: list[Task]) -> None:
    """Check that each task is queued, or in the inbox (or the hands) of the worker that the ledger names."""
    ledger = bench.dispatcher.ledger
    found: list[int] = [task.number for task in ledger.queue]
    for lane in bench.lanes:
        here = bench.waiting(lane) + ([lane.running()] if lane.running() else [])
        assert sorted(here) == sorted(lane.sent)
        found += here
    assert sorted(found) == [task.number for task in tasks]
    assert ledger.queued == len(ledger.queue)
    assert ledger.under_way == sum(len(lane.sent) for lane in bench.lanes)


def test_what_does_not_fit_into_the_inboxes_stays_queued(bench: _Bench) -> None:
    """Otherwise a task would count as sent that no worker ever sees."""
    dispatcher = bench.dispatcher
    tasks = [bench.new(20_000) for _ in range(12)]
    for task in tasks:
        dispatcher.ledger.submit(task)
    with dispatcher.lock:
        dispatcher.fill()
    _assert_each_is_somewhere(bench, tasks)
    assert all(lane.sent for lane in bench.lanes)
    assert dispatcher.ledger.first() is not None


def test_stolen_records_that_do_not_fit_are_queued_again(bench: _Bench) -> None:
    """Tasks that fill the inbox of one worker may not all fit into the empty inbox of another, whose index is
    elsewhere. The ledger must not assign a task to a worker whose inbox does not contain it.
    """
    busy, thief = bench.lanes
    dispatcher = bench.dispatcher
    _stand_at(thief, 3)
    tasks = [bench.send(busy, 16)]
    bench.begin(busy)
    # Behind the index there are 40 KiB, for two big records; before it 24 KiB, for one more, but not for two.
    tasks += [bench.send(busy, size) for size in (16_200, 16_200, 16_200, 12_000, 16, 16, 16, 16)]
    dispatcher.roster.idle[thief] = None
    with dispatcher.lock:
        dispatcher.fill()
    _assert_each_is_somewhere(bench, tasks)
    assert sorted(thief.sent) == [2, 3, 4]
    assert [task.number for task in dispatcher.ledger.queue] == [5]
    assert bench.asked


def test_a_cancel_puts_all_other_tasks_back(bench: _Bench) -> None:
    """It takes all tasks out of an inbox, including a record that wraps around the end of the ring."""
    busy = bench.lanes[0]
    dispatcher = bench.dispatcher
    tasks = [bench.send(busy, 16_000)]
    bench.begin(busy)
    tasks += [bench.send(busy, size) for size in (16, 16_000, 16_000, 12_000, 6_000, 9_900)]
    cancelled = tasks.pop(1)
    settlements: Settlements = []
    with dispatcher.lock:
        assert dispatcher.cancel(cancelled, settlements)
    _assert_each_is_somewhere(bench, tasks)
    assert dispatcher.ledger.cancelled == 1
    assert not dispatcher.ledger.queued


def test_a_cancel_ends_another_cancelled_task_that_it_takes_out_of_the_inbox(bench: _Bench) -> None:
    """Its worker could not be kept from beginning it when it was cancelled. If it stayed with the worker, but
    no longer in the inbox, the worker would count as torn, and be killed.
    """
    busy = bench.lanes[0]
    dispatcher = bench.dispatcher
    tasks = [bench.send(busy, 16) for _ in range(3)]
    bench.begin(busy)
    tasks[1].ending = CANCELLED
    with dispatcher.lock:
        assert not dispatcher.cancel(tasks[0], [])
    assert dispatcher.ledger.cancelled == 1
    _assert_each_is_somewhere(bench, [tasks[0], tasks[2]])


def test_a_task_that_has_begun_may_be_left_alone(bench: _Bench) -> None:
    busy = bench.lanes[0]
    dispatcher = bench.dispatcher
    tasks = [bench.send(busy, 16) for _ in range(3)]
    bench.begin(busy)
    with dispatcher.lock:
        assert not dispatcher.cancel(tasks[0], [], even_begun=False)
        assert dispatcher.cancel(tasks[1], [], even_begun=False)
    # The task goes on, and its outcome counts.
    assert not tasks[0].ending
    assert dispatcher.ledger.finish(busy.key, tasks[0].number, True) is tasks[0]
    assert (dispatcher.ledger.succeeded, dispatcher.ledger.cancelled) == (1, 1)
    assert bench.waiting(busy) == [tasks[2].number]


def test_a_cancelled_task_is_not_stolen(bench: _Bench) -> None:
    """When it was cancelled, its worker (suspended, say) could not be kept from beginning it."""
    busy, thief = bench.lanes
    dispatcher = bench.dispatcher
    tasks = [bench.send(busy, 16)]
    bench.begin(busy)
    tasks += [bench.send(busy, 16) for _ in range(4)]
    busy.doomed = True
    assert busy.channel.lock.acquire(False)
    with dispatcher.lock:
        assert not dispatcher.cancel(tasks[1], [])
    busy.channel.lock.release()
    busy.doomed = False
    dispatcher.roster.idle[thief] = None
    with dispatcher.lock:
        dispatcher.fill()
    cancelled = tasks.pop(1)
    _assert_each_is_somewhere(bench, tasks)
    assert cancelled.number not in thief.sent


@pytest.mark.parametrize("how", ["a task is nowhere", "it begins in the future", "the ends of the inbox"])
def test_a_worker_with_impossible_words_in_shared_memory_counts_as_torn(bench: _Bench, how: str) -> None:
    """Otherwise its tasks would never end, or their time limits never expire."""
    lane, other = bench.lanes
    tasks = [bench.send(lane, 16) for _ in range(3)]
    bench.send(other, 16)
    bench.begin(lane)
    look = bench.dispatcher.check_sane
    if how == "a task is nowhere":
        lane.words[TASK] = 77_777
    elif how == "it begins in the future":
        tasks[0].timeout = 600.0
        lane.words[STARTED] = time.monotonic_ns() + 10**12
    else:
        lane.words[IN_TAIL] += 5
    for _ in range(2):
        look(lane)
        look(other)
    assert lane.is_torn
    assert not other.is_torn
    assert list(lane.sent) == [task.number for task in tasks]


def test_a_worker_that_says_it_has_done_more_than_it_may_still_gets_tasks(bench: _Bench) -> None:
    """Otherwise it would be idle for ever, and so would a pool of such workers."""
    lane = bench.lanes[0]
    lane.maxtasksperchild = 3
    lane.words[DONE] = 1 << 40
    bench.send(lane, 16)
    assert lane.room() == 2
    lane.words[DONE] = 2
    assert lane.room() == 0


def test_a_worker_is_sane_wherever_its_tasks_are(bench: _Bench) -> None:
    lane = bench.lanes[0]
    # Whatever the time is in this process: the program may have replaced the clock (with freezegun).
    lane.words[STARTED] = time.monotonic_ns() + 10**12
    tasks = [bench.send(lane, 16) for _ in range(2)]
    look = bench.dispatcher.check_sane
    for task in tasks:
        look(lane)
        bench.begin(lane)
        look(lane)
        # A worker sends the outcome before it clears its row.
        lane.channel.outbox.try_put(RESULT_HEAD.pack(task.number, 0, NONE))
        look(lane)
        lane.words[TASK] = 0
        look(lane)
    with bench.dispatcher.lock:
        bench.dispatcher.drain([])
    look(lane)
    assert not lane.is_torn
    assert not lane.lost


def test_a_stopped_worker_gets_nothing_until_it_is_continued(
    bench: _Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has not begun goes to others; what it has begun stays with it."""
    lane, other = bench.lanes
    for number, each in enumerate(bench.lanes):
        each.identity = ProcessIdentity(1_000_000 + number, number)
    stopped = {lane.pid}
    monkeypatch.setattr(_dispatcher, "is_stopped", stopped.__contains__)
    dispatcher = bench.dispatcher
    tasks = [bench.send(lane, 16) for _ in range(3)]
    bench.begin(lane)
    for _ in range(2):
        with dispatcher.lock:
            dispatcher.check_stopped(lane, [])
            dispatcher.check_stopped(other, [])
            tasks.append(bench.new())
            assert dispatcher.submit(tasks[-1]) is other
        assert list(lane.sent) == [1]
        _assert_each_is_somewhere(bench, tasks)
    # It ends its task, and gets others as soon as it is continued.
    lane.channel.outbox.try_put(RESULT_HEAD.pack(1, 0, NONE))
    lane.words[TASK] = 0
    with dispatcher.lock:
        dispatcher.drain([])
    assert not lane.sent
    stopped.clear()
    with dispatcher.lock:
        dispatcher.check_stopped(lane, [])
    assert lane.sent
    _assert_each_is_somewhere(bench, tasks[1:])
