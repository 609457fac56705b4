"""What becomes of the items of a chunk whose worker has died."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from mpkit.errors import TaskCancelled, WorkerCrashed
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import CANCELLED, Chunk, Death, Task
from mpkit.pool._engine.losses import settle_loss
from mpkit.pool._engine.settlements import Settlements
from mpkit.pool._protocol.channel import CHUNK, ITEM, RANGE, TASK, TASK_HEAD, Channel

_DEATH = Death(7, -9, "SIGKILL", None, None, False)
_FUNCTION = b"the function"
_ITEMS = b"the items"
#: The index, in the input of the map, of the first item of the list that the chunk belongs to.
_OFFSET = 100


class _Sink:
    _can_be_told_again = False

    def __init__(self) -> None:
        self.pieces: list[Chunk] = []

    def _sent(self, task: Task) -> None:
        """Do nothing."""

    def _next_item(self) -> int:
        return 0

    def _settle(self, task: Task, kind: int, data: object) -> None:
        """Do nothing."""

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> None:
        assert not self.pieces, "it is told twice"
        self.pieces.extend(pieces)


class _Scene:
    """A worker that has begun a chunk of the items 2 to 9 of a list, and a task that waits behind that."""

    def __init__(self) -> None:
        self.dispatcher = Dispatcher()
        process: Any = None
        self.lane = Lane(
            0, Channel.create(), process, None, stack_pipe=None, maxtasksperchild=None, oom_kills=None
        )
        self.dispatcher.add(self.lane)
        self.sink = _Sink()
        self.settlements: Settlements = []

    def begin(self, *, start: int = 2, retries: int = 0) -> Chunk:
        head = TASK_HEAD.pack(1, len(_FUNCTION), CHUNK)
        record = head + _FUNCTION + RANGE.pack(start, 10) + _ITEMS
        chunk = Chunk(1, self.sink, record, Function("f", b""), None, retries, None, start, 10)
        chunk.offset = _OFFSET
        self.dispatcher.ledger.send_new(0, chunk)
        self.lane.words[TASK] = 1
        behind = Task(2, self.sink, TASK_HEAD.pack(2, 0, 0), Function("f", b""))
        assert self.lane.channel.inbox.try_put(behind.record)
        self.dispatcher.ledger.send_new(0, behind)
        return chunk

    def die(self) -> None:
        with self.dispatcher.lock:
            settle_loss(self.dispatcher, self.lane, _DEATH, itertools.count(3), self.settlements)
        ledger = self.dispatcher.ledger
        assert (ledger.under_way, ledger.queued) == (0, len(ledger.queue))

    def queued(self) -> list[tuple[int, int]]:
        """The ranges of items that are sent again; of the task behind the chunk, its number."""
        queue = self.dispatcher.ledger.queue
        return [(task.start, task.stop) if isinstance(task, Chunk) else (2, 2) for task in queue]

    def failed(self) -> list[tuple[int, int]]:
        """The ranges of items that have failed."""
        failed = [task for task, _, error in self.settlements if isinstance(error, WorkerCrashed)]
        assert len(failed) == len(self.settlements)
        return [(task.start, task.stop) for task in failed if isinstance(task, Chunk)]


@pytest.fixture
def scene() -> Iterator[_Scene]:
    scene = _Scene()
    yield scene
    scene.lane.channel.discard()


@pytest.mark.parametrize(
    "done, item, queued, failed",
    [
        (2, 5 << 32 | 6, [(2, 5), (6, 10)], [(5, 6)]),
        (4, 5 << 32 | 6, [(4, 5), (6, 10)], [(5, 6)]),
        (5, 5 << 32 | 6, [(6, 10)], [(5, 6)]),
        (2, 9 << 32 | 10, [(2, 9)], [(9, 10)]),
        (2, 2 << 32 | 3, [(3, 10)], [(2, 3)]),
        (2, 5 << 32 | 8, [(2, 5), (5, 6), (6, 7), (7, 8), (8, 10)], []),
        (6, 5 << 32 | 8, [(6, 7), (7, 8), (8, 10)], []),
        (9, 8 << 32 | 10, [], [(9, 10)]),
    ],
    ids=[
        "one item",
        "some are done",
        "all before it are done",
        "the last item",
        "the first item",
        "a block",
        "part of a block is done",
        "all but one are done",
    ],
)
def test_only_the_item_in_hand_may_fail(
    scene: _Scene, done: int, item: int, queued: list[tuple[int, int]], failed: list[tuple[int, int]]
) -> None:
    """Each item of a block is sent again alone, all others together; none is lost, and none runs twice."""
    chunk = scene.begin()
    chunk.done = done
    scene.lane.words[ITEM] = item
    scene.die()
    # What the worker had not begun was queued again before the pieces were known.
    assert sorted(scene.queued()) == sorted([(2, 2), *queued])
    assert scene.failed() == failed
    assert not any("tried" in str(error) for _, _, error in scene.settlements)
    for piece in scene.sink.pieces:
        record = piece.record
        at = TASK_HEAD.size + len(_FUNCTION)
        assert TASK_HEAD.unpack_from(record) == (piece.number, len(_FUNCTION), CHUNK)
        assert RANGE.unpack_from(record, at) == (piece.start, piece.stop)
        assert (record[TASK_HEAD.size : at], record[at + RANGE.size :]) == (_FUNCTION, _ITEMS)
        assert piece.offset == _OFFSET


def test_an_item_with_retries_left_is_tried_again_and_remembers_the_death(scene: _Scene) -> None:
    scene.begin(retries=1)
    scene.lane.words[ITEM] = 5 << 32 | 6
    scene.die()
    assert scene.failed() == []
    assert sorted(scene.queued()) == [(2, 2), (2, 5), (5, 6), (6, 10)]
    assert {piece.start: piece.deaths for piece in scene.sink.pieces} == {2: None, 5: [_DEATH], 6: None}
    assert scene.dispatcher.ledger.retried == 1


@pytest.mark.parametrize("item", [0, 2 << 32 | 2, 1, (1 << 64) - 1])
def test_a_chunk_is_not_sent_again_for_ever_if_no_item_was_in_hand(scene: _Scene, item: int) -> None:
    """The worker died of unpickling it; or the word is nonsense, because something has written over it."""
    scene.begin()
    scene.lane.words[ITEM] = item
    scene.die()
    assert scene.failed() == [(2, 10)]
    assert scene.queued() == [(2, 2)]


@pytest.mark.parametrize("item", [1, 3 << 32, 99 << 32 | 5, (1 << 64) - 1])
def test_whatever_the_word_says_each_item_is_sent_again_or_fails_once(scene: _Scene, item: int) -> None:
    chunk = scene.begin()
    chunk.done = 4
    scene.lane.words[ITEM] = item
    scene.die()
    ranges = [each for each in [*scene.queued(), *scene.failed()] if each != (2, 2)]
    assert sorted(index for start, stop in ranges for index in range(start, stop)) == list(range(4, 10))


class _FullOnce(deque[Task]):
    """A queue that raises MemoryError once, for the third task."""

    is_full = False

    def appendleft(self, task: Task) -> None:
        if len(self) == 2 and not self.is_full:
            self.is_full = True
            raise MemoryError
        super().appendleft(task)


def test_a_division_that_memory_was_missing_for_is_done_at_the_second_try(scene: _Scene) -> None:
    """The sink is told of the pieces once: it counts on each of them once."""
    scene.begin()
    scene.dispatcher.ledger.queue = _FullOnce()
    scene.lane.words[ITEM] = 5 << 32 | 8
    with pytest.raises(MemoryError):
        scene.die()
    scene.die()
    assert sorted(scene.queued()) == [(2, 2), (2, 5), (5, 6), (6, 7), (7, 8), (8, 10)]
    assert not scene.settlements
    assert [(piece.start, piece.stop) for piece in scene.sink.pieces] == sorted(scene.queued())[1:]


def test_a_chunk_that_is_being_stopped_ends_as_a_whole(scene: _Scene) -> None:
    chunk = scene.begin(retries=1)
    chunk.ending = CANCELLED
    scene.lane.words[ITEM] = 5 << 32 | 6
    scene.die()
    assert [(task, type(error)) for task, _, error in scene.settlements] == [(chunk, TaskCancelled)]
    assert scene.queued() == [(2, 2)]
    assert not scene.sink.pieces


def test_all_deaths_are_named_if_a_task_was_tried_again(scene: _Scene) -> None:
    chunk = scene.begin(start=9, retries=1)
    chunk.deaths = [_DEATH._replace(pid=6)]
    scene.lane.words[ITEM] = 9 << 32 | 10
    scene.die()
    [(ended, _, error)] = scene.settlements
    assert ended is chunk
    assert (error.task_id, error.pid, error.signal, error.stack) == (1, 7, "SIGKILL", None)
    assert "tried 2 times" in str(error)
    assert "process 6 " in str(error)
    assert "process 7 " in str(error)
