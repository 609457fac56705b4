"""The dispatcher, with channels that no worker reads: it always knows where each task is."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Task
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import (
    BIG_VALUE,
    DONE,
    IN_TAIL,
    NONE,
    RAISED,
    RESULT_HEAD,
    STARTED,
    TASK,
    TASK_HEAD,
    Channel,
)


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

    def send(self, lane: Lane, size: int) -> Task:
        """Put a task with a record of `size` bytes into a worker's inbox."""
        number, self._next = self._next, self._next + 1
        task = Task(number, _Sink(), TASK_HEAD.pack(number, 0, 0).ljust(size, b"x"), self.function)
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
