"""The task ledger, compared with a model: in any order of events each task ends exactly once."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mpkit._platform.hints import override
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.ledger import CANCELLED, ENDED, QUEUED, SENT, TIMED_OUT, Chunk, Death, Ledger, Task

_DEATH = Death(1, -9, "SIGKILL", None, None, False)
_FUNCTION = Function("f", b"")


class _Sink:
    def _sent(self, task: Task) -> None:
        """Do nothing."""

    _can_be_told_again = True

    def _next_item(self) -> None:
        return None

    def _settle(self, task: Task, kind: int, data: object) -> None:
        """Never called by a ledger."""

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> None:
        """Never called by a ledger."""


def make(number: int, retries: int = 0) -> Task:
    return Task(number, _Sink(), b"", _FUNCTION, None, retries)


def make_chunk(number: int, start: int, stop: int, retries: int = 0) -> Chunk:
    return Chunk(number, _Sink(), b"", _FUNCTION, None, retries, None, start, stop)


class LedgerModel(RuleBasedStateMachine):
    """The model: plain lists say where each task is, and how often it has ended."""

    def __init__(self) -> None:
        super().__init__()
        self.ledger = Ledger()
        self.tasks: list[Task] = []
        self.queue: list[Task] = []
        self.workers: dict[int, list[Task]] = {}
        self.ended: dict[int, int] = {}
        self.next_worker = 0
        self.next_task = 0
        # The items of all chunks are numbered. Each has ended, or is in one chunk that has not ended.
        self.items = 0
        self.ended_items: list[int] = []

    def number(self) -> int:
        self.next_task += 1
        return self.next_task

    def new(self, retries: int, items: int) -> Task:
        if not items:
            task = make(self.number(), retries)
        else:
            task = make_chunk(self.number(), self.items, self.items + items, retries)
            self.items += items
        self.tasks.append(task)
        return task

    def end(self, task: Task) -> None:
        self.ended[task.number] = self.ended.get(task.number, 0) + 1
        if isinstance(task, Chunk):
            self.ended_items.extend(range(task.done, task.stop))

    @rule(retries=st.integers(0, 2), items=st.integers(0, 6))
    def submit(self, retries: int, items: int) -> None:
        task = self.new(retries, items)
        self.queue.append(task)
        self.ledger.submit(task)

    @rule()
    def add_worker(self) -> None:
        self.next_worker += 1
        self.workers[self.next_worker] = []
        self.ledger.add_worker(self.next_worker)

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), items=st.integers(0, 6))
    def submit_straight_to_a_worker(self, data: st.DataObject, items: int) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        task = self.new(0, items)
        self.workers[worker].append(task)
        self.ledger.send_new(worker, task)

    @precondition(lambda self: self.workers)
    @rule(data=st.data())
    def send(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        task = self.ledger.first()
        if not self.queue:
            assert task is None
            return
        assert task is self.queue[0]
        self.ledger.send_first(worker)
        self.workers[worker].append(self.queue.pop(0))

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), succeeded=st.booleans())
    def finish(self, data: st.DataObject, succeeded: bool) -> None:
        worker = data.draw(st.sampled_from([key for key, tasks in self.workers.items() if tasks]))
        task = self.workers[worker].pop(0)
        assert self.ledger.finish(worker, task.number, succeeded) is task
        assert self.ledger.finish(worker, task.number, succeeded) is None
        self.end(task)

    @precondition(lambda self: any(len(tasks) > 1 for tasks in self.workers.values()))
    @rule(data=st.data())
    def take_back_what_has_not_begun(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from([key for key, tasks in self.workers.items() if len(tasks) > 1]))
        back = self.workers[worker][1:]
        del self.workers[worker][1:]
        ended = self.ledger.take_back(worker, [task.number for task in back])
        assert ended == [task for task in back if task.ending]
        for task in ended:
            self.end(task)
        self.queue[:0] = [task for task in back if not task.ending]

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), begun=st.booleans())
    def worker_dies(self, data: st.DataObject, begun: bool) -> None:
        worker = data.draw(st.sampled_from(sorted(self.workers)))
        tasks = self.workers.pop(worker)
        running = tasks[0] if tasks and begun else None
        number = None if running is None else running.number
        expected_ended = []
        back = []
        for task in tasks:
            if task.ending or (task is running and len(task.deaths or ()) >= task.retries):
                expected_ended.append(task)
            else:
                back.append(task)
        assert self.ledger.ending_with(worker, number) == expected_ended
        retried = self.ledger.retried
        self.ledger.lose_worker(worker, number, _DEATH)
        assert self.ledger.retried == retried + (running is not None and running in back)
        for task in expected_ended:
            self.end(task)
        self.queue[:0] = back

    def chunks_in_hand(self) -> list[int]:
        """The workers whose first task is a chunk that can still be divided."""
        firsts = [(key, tasks[0]) for key, tasks in self.workers.items() if tasks]
        return [
            key
            for key, task in firsts
            if isinstance(task, Chunk) and task.stop - task.done > 1 and not task.ending
        ]

    @precondition(lambda self: self.chunks_in_hand())
    @rule(data=st.data())
    def a_part_of_a_chunk_arrives(self, data: st.DataObject) -> None:
        chunk = self.workers[data.draw(st.sampled_from(self.chunks_in_hand()))][0]
        assert isinstance(chunk, Chunk)
        done = data.draw(st.integers(chunk.done, chunk.stop - 1))
        self.ended_items.extend(range(chunk.done, done))
        chunk.done = done

    @precondition(lambda self: self.chunks_in_hand())
    @rule(data=st.data())
    def worker_dies_in_the_middle_of_a_chunk(self, data: st.DataObject) -> None:
        """As in the engine: the item that ran is retried alone, or has crashed; the rest is sent together."""
        worker = data.draw(st.sampled_from(self.chunks_in_hand()))
        chunk, *behind = self.workers.pop(worker)
        assert isinstance(chunk, Chunk)
        first = data.draw(st.integers(chunk.done, chunk.stop - 1))
        end = data.draw(st.integers(first + 1, chunk.stop))
        parts = [(chunk.done, first), *((k, k + 1) for k in range(first, end)), (end, chunk.stop)]
        pieces = [
            make_chunk(self.number(), start, stop, chunk.retries) for start, stop in parts if start < stop
        ]
        guilty = None
        if end - first == 1:
            in_hand = next(piece for piece in pieces if piece.start == first)
            in_hand.deaths = [_DEATH]
            guilty = None if chunk.retries else in_hand
        again = [piece for piece in pieces if piece is not guilty]
        crashed, retried = self.ledger.crashed, self.ledger.retried
        self.ledger.divide(chunk, again, guilty)
        assert self.ledger.crashed == crashed + (guilty is not None)
        assert self.ledger.retried == retried + sum(piece.deaths is not None for piece in again)
        ended = self.ledger.ending_with(worker, None)
        assert ended == [task for task in behind if task.ending]
        self.ledger.lose_worker(worker, None, _DEATH)
        # Tasks that had not begun were queued before the pieces of the chunk were known, so they come first.
        self.queue[:0] = [*(task for task in behind if task not in ended), *again]
        assert chunk.state == ENDED
        self.tasks.remove(chunk)
        self.tasks.extend(pieces)
        for task in [*ended, *([] if guilty is None else [guilty])]:
            self.end(task)

    @precondition(lambda self: self.queue)
    @rule(data=st.data())
    def cancel_queued(self, data: st.DataObject) -> None:
        task = data.draw(st.sampled_from(self.queue))
        assert self.ledger.end(task)
        assert not self.ledger.end(task)
        self.queue.remove(task)
        self.end(task)

    @precondition(lambda self: any(self.workers.values()))
    @rule(data=st.data(), reason=st.sampled_from([CANCELLED, TIMED_OUT]))
    def begin_to_stop_a_running_one(self, data: st.DataObject, reason: str) -> None:
        worker = data.draw(st.sampled_from([key for key, tasks in self.workers.items() if tasks]))
        self.workers[worker][0].ending = reason

    @rule()
    def the_pool_is_terminated(self) -> None:
        pending = sorted(
            [*self.queue, *(task for tasks in self.workers.values() for task in tasks)],
            key=lambda task: task.number,
        )
        ended: list[Task] = []
        self.ledger.fail_everything(ended, CANCELLED)
        assert ended == pending
        for task in pending:
            self.end(task)
        self.queue.clear()
        for tasks in self.workers.values():
            tasks.clear()

    @invariant()
    def each_task_is_in_one_place(self) -> None:
        ledger = self.ledger
        assert ledger.queued == len(self.queue)
        assert ledger.under_way == sum(map(len, self.workers.values()))
        assert ledger.submitted == len(self.tasks) == ledger.live + len(self.ended)
        assert ledger.succeeded + ledger.failed + ledger.cancelled + ledger.crashed == len(self.ended)
        assert [task for task in ledger.queue if task.state == QUEUED] == self.queue
        for key, tasks in self.workers.items():
            assert list(ledger.sent[key].values()) == tasks
            assert all(task.state == SENT and task.worker == key for task in tasks)

    @invariant()
    def none_ends_twice(self) -> None:
        assert all(times == 1 for times in self.ended.values())
        assert all((task.state == ENDED) == (task.number in self.ended) for task in self.tasks)

    @invariant()
    def each_item_is_in_one_place(self) -> None:
        pending = [
            item
            for task in self.tasks
            if isinstance(task, Chunk) and task.state != ENDED
            for item in range(task.done, task.stop)
        ]
        assert sorted([*pending, *self.ended_items]) == list(range(self.items))


TestLedger = LedgerModel.TestCase
TestLedger.settings = settings(max_examples=40, stateful_step_count=30, deadline=None)


def test_all_deaths_of_a_task_that_is_retried_are_remembered() -> None:
    ledger = Ledger()
    task = make(1, retries=2)
    ledger.submit(task)
    ended: list[list[Task]] = []
    for worker in (1, 2, 3):
        ledger.add_worker(worker)
        assert ledger.first() is task
        ledger.send_first(worker)
        ended.append(ledger.ending_with(worker, 1))
        ledger.lose_worker(worker, 1, _DEATH._replace(pid=worker))
    assert ended == [[], [], [task]]
    assert task.deaths is not None
    assert [death.pid for death in task.deaths] == [1, 2, 3]
    assert (ledger.crashed, ledger.retried, ledger.live) == (1, 2, 0)


def test_the_pieces_of_a_chunk_take_its_place() -> None:
    ledger = Ledger()
    ledger.add_worker(1)

    whole, behind = make_chunk(1, 0, 10), make(2)
    ledger.send_new(1, whole)
    ledger.submit(behind)
    before, guilty, after = make_chunk(3, 2, 5), make_chunk(4, 5, 6), make_chunk(5, 6, 10)
    ledger.divide(whole, [before, after], guilty)
    assert ledger.ending_with(1, None) == []
    ledger.lose_worker(1, None, _DEATH)
    assert list(ledger.queue) == [before, after, behind]
    assert (whole.state, guilty.state) == (ENDED, ENDED)
    assert (ledger.submitted, ledger.live, ledger.crashed) == (4, 3, 1)

    ledger.add_worker(2)
    assert ledger.first() is before
    ledger.send_first(2)
    ledger.divide(before, [make_chunk(6, 2, 3), make_chunk(7, 3, 4), make_chunk(8, 4, 5)], None)
    assert (ledger.submitted, ledger.live, ledger.queued, ledger.crashed) == (6, 5, 5, 1)


class _FullOnce(deque[Task]):
    """A queue that raises MemoryError for one task, once."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def appendleft(self, task: Task) -> None:
        if task.number == self.number:
            self.number = -1
            raise MemoryError
        super().appendleft(task)


def test_a_division_that_failed_half_way_succeeds_at_the_second_try() -> None:
    """Pieces that were queued before the failure must not be queued again, and the rest must not be lost."""
    ledger = Ledger()
    ledger.queue = _FullOnce(4)
    ledger.add_worker(1)
    whole = make_chunk(1, 0, 4, retries=1)
    ledger.send_new(1, whole)
    first, second, guilty, last = (make_chunk(3 + k, k, k + 1, retries=1) for k in range(4))
    guilty.deaths = [_DEATH]
    pieces = [first, second, guilty, last]
    with pytest.raises(MemoryError):
        ledger.divide(whole, pieces, None)
    # In between, one of the pieces is sent and ends.
    ledger.add_worker(2)
    assert ledger.first() is guilty
    ledger.send_first(2)
    ledger.finish(2, guilty.number, True)
    ledger.divide(whole, pieces, None)
    ledger.lose_worker(1, None, _DEATH)
    assert list(ledger.queue) == [first, second, last]
    assert (ledger.submitted, ledger.live, ledger.queued, ledger.succeeded) == (4, 3, 3, 1)
    assert ledger.retried == 1


def test_cancelled_tasks_do_not_pile_up_behind_one_that_waits() -> None:
    """Otherwise they would be kept, with their records, until all tasks before them were sent."""
    ledger = Ledger()
    first = make(0)
    ledger.submit(first)
    for number in range(1, 1000):
        task = make(number)
        ledger.submit(task)
        assert ledger.end(task)
        assert len(ledger.queue) < 100
    last = make(1000)
    ledger.submit(last)
    ledger.add_worker(0)
    for task in (first, last):
        assert ledger.first() is task
        ledger.send_first(0)
    assert ledger.first() is None
    assert (ledger.queued, ledger.cancelled) == (0, 999)


def test_the_shortest_time_limit_is_that_of_a_task_that_has_not_ended() -> None:
    ledger = Ledger()
    ledger.add_worker(0)
    assert ledger.shortest_timeout() == math.inf
    tasks = [
        Task(number, _Sink(), b"", _FUNCTION, limit) for number, limit in enumerate([3.0, 1.0, 2.0, None])
    ]
    ledger.send_new(0, tasks[0])
    for task in tasks[1:]:
        ledger.submit(task)
    assert ledger.shortest_timeout() == 1.0
    ledger.end(tasks[1])
    assert ledger.shortest_timeout() == 2.0
    assert ledger.first() is tasks[2]
    ledger.send_first(0)
    assert ledger.shortest_timeout() == 2.0
    ledger.finish(0, 2, True)
    assert ledger.shortest_timeout() == 3.0
    ledger.finish(0, 0, True)
    assert ledger.shortest_timeout() == math.inf


def test_a_task_that_an_exception_has_left_in_two_places_counts_once() -> None:
    """Otherwise it would be counted for ever, and a closed pool would never end."""
    ledger = Ledger()
    task, last = make(0), make(1)
    sent = ledger.add_worker(0)
    ledger.submit(task)
    # As if a signal handler had raised in the middle of `send_first`.
    task.worker = 0
    sent[task.number] = task
    ledger.recount()
    assert (ledger.queued, ledger.under_way) == (0, 1)
    assert ledger.first() is None
    ledger.submit(last)
    assert ledger.first() is last
    assert ledger.finish(0, 0, True) is task
    assert (ledger.live, ledger.succeeded) == (1, 1)


def test_a_task_that_was_sent_twice_is_taken_back_once() -> None:
    """Otherwise it would be queued twice, and count twice for ever."""
    ledger = Ledger()
    task, other = make(0), make(1)
    ledger.add_worker(0)
    ledger.send_new(0, task)
    ledger.send_new(0, other)
    assert ledger.take_back(0, [0, 1, 0]) == []
    assert list(ledger.queue) == [task, other]
    assert (ledger.queued, ledger.under_way) == (2, 0)


def test_a_task_of_a_dead_worker_that_waits_again_counts_once() -> None:
    """Otherwise it would count as being with a worker, and never be sent again."""

    class NoMemory(list[Death]):
        @override
        def __iter__(self) -> Iterator[Death]:
            raise MemoryError

    ledger = Ledger()
    running, other = make(0, retries=2), make(1)
    ledger.add_worker(0)
    ledger.send_new(0, running)
    ledger.send_new(0, other)
    running.deaths = NoMemory([_DEATH])
    with pytest.raises(MemoryError):
        ledger.lose_worker(0, 0, _DEATH)
    # Before the second try, an interrupted thread looks at the ledger.
    ledger.recount()
    running.deaths = [_DEATH]
    ledger.lose_worker(0, 0, _DEATH)
    assert ledger.first() is running
    assert list(ledger.queue) == [running, other]
    assert (ledger.queued, ledger.under_way) == (2, 0)


def test_a_task_of_a_dead_worker_that_is_cancelled_while_it_waits_again_ends_once() -> None:
    """Otherwise it would be told twice, and a closed pool would wait for one task too many, or too few."""
    ledger = Ledger()
    ledger.queue = _FullOnce(0)
    first, second = make(0), make(1)
    ledger.add_worker(0)
    ledger.send_new(0, first)
    ledger.send_new(0, second)
    with pytest.raises(MemoryError):
        ledger.lose_worker(0, None, _DEATH)
    # Before the second try, the task that is in the queue already is cancelled.
    assert ledger.end(second)
    assert ledger.ending_with(0, None) == []
    ledger.lose_worker(0, None, _DEATH)
    assert [task for task in ledger.queue if task.state == QUEUED] == [first]
    assert (ledger.live, ledger.queued, ledger.cancelled) == (1, 1, 1)
