"""When a worker rings for the threads of its pool: a ring too few makes a thread sleep on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from types import SimpleNamespace

import pytest

from mpkit.pool._protocol.channel import (
    ALWAYS,
    ANY,
    AWAKE,
    BACK,
    DONE,
    FRONT,
    LEAVE_RECORD,
    LOGS_LATE,
    LOW,
    NOT_NOW,
    SOON,
    WANTED,
    WHEN_FULL,
    WHEN_LOW,
    Board,
    Channel,
)
from mpkit.pool._worker import bells as _bells
from mpkit.pool._worker.bells import Bells

#: The task that has just been done, and another one.
_TASK, _OTHER = 7, 8
#: Moments in nanoseconds: a ring, a moment just after it, and one that is later by more than a millisecond.
_THEN, _SOON_AFTER, _LATER = 10**12, 10**12 + 1000, 10**12 + 2_000_000


class _Worker:
    """A worker, and the two bells of its pool."""

    def __init__(self, board: Board, channel: Channel) -> None:
        self.board = board
        self.channel = channel
        self.bells = Bells(channel, board)
        self.at_work()

    def at_work(self) -> None:
        """Its inbox is not empty, and its outbox is."""
        assert self.channel.inbox.try_put(LEAVE_RECORD)
        self.channel.words[DONE] = 0

    def fill_the_outbox(self) -> None:
        outbox = self.channel.outbox
        while outbox.room() >= outbox.capacity << 2:
            assert outbox.try_put(bytes(8000))

    def rung(self, now: int = _LATER, *, idle: bool = False) -> str:
        """Which bells it rings when the task is done."""
        self.bells.ring(_TASK, now, idle=idle)
        return self.heard()

    def heard(self) -> str:
        """Which bells it has rung."""
        rung = [name for name in ("front", "back") if getattr(self.board, name).acquire(False)]
        for name, word in (("front", FRONT), ("back", BACK)):
            if name in rung:
                assert not self.board.words[word], "it would ring again before the thread is awake"
        return " ".join(rung)


@pytest.fixture
def worker() -> Iterator[_Worker]:
    with closing(Board.create("a pool")) as board:
        channel = Channel.create()
        try:
            yield _Worker(board, channel)
        finally:
            channel.discard()


@pytest.mark.parametrize("idle", [False, True], ids=["at work", "idle"])
def test_it_rings_for_nobody_who_is_awake(worker: _Worker, idle: bool) -> None:
    worker.board.words[BACK] = AWAKE
    worker.channel.words[LOW] = 100
    worker.fill_the_outbox()
    assert worker.rung(idle=idle) == ""


@pytest.mark.parametrize(
    "wanted, rung", [(ANY, "front"), (_TASK, "front"), (SOON, "front"), (_OTHER, ""), (NOT_NOW, "")]
)
def test_it_rings_for_what_the_leader_wants(worker: _Worker, wanted: int, rung: str) -> None:
    worker.board.words[FRONT] = 1
    worker.board.words[WANTED] = wanted
    assert worker.rung() == rung
    # And not again.
    assert worker.rung() == ""


@pytest.mark.parametrize("wanted", [_OTHER, NOT_NOW])
@pytest.mark.parametrize("why", ["its inbox runs low", "it is idle", "its outbox fills up"])
def test_it_rings_for_the_leader_to_get_more_tasks_or_room(worker: _Worker, wanted: int, why: str) -> None:
    worker.board.words[FRONT] = 1
    worker.board.words[WANTED] = wanted
    if why == "its outbox fills up":
        worker.fill_the_outbox()
    else:
        worker.channel.words[LOW] = 2 if why == "its inbox runs low" else 1
    assert worker.rung(idle=why == "it is idle") == "front"


def test_an_idle_worker_that_is_not_to_ask_for_tasks_does_not_ring_for_them(worker: _Worker) -> None:
    worker.channel.words[LOW] = 0
    worker.board.words[FRONT] = 1
    worker.board.words[WANTED] = _OTHER
    worker.board.words[BACK] = WHEN_LOW
    assert worker.rung(idle=True) == ""


@pytest.mark.parametrize(
    "wanted, rung", [(ANY, "front"), (SOON, "front"), (_TASK, "front"), (_OTHER, ""), (NOT_NOW, "")]
)
def test_parts_of_a_chunk_ring_for_a_leader_that_wants_them_but_not_all_the_time(
    worker: _Worker, monkeypatch: pytest.MonkeyPatch, wanted: int, rung: str
) -> None:
    heard: list[str] = []
    for now in (_THEN, _SOON_AFTER, _LATER):
        monkeypatch.setattr(_bells, "CLOCK", SimpleNamespace(monotonic_ns=lambda now=now: now))
        worker.board.words[FRONT] = 1
        worker.board.words[WANTED] = wanted
        worker.bells.ring_for_a_part(_TASK)
        heard.append(worker.heard())
    assert heard == [rung, "", rung]
    worker.board.words[FRONT] = 0
    monkeypatch.setattr(_bells, "CLOCK", SimpleNamespace(monotonic_ns=lambda: 2 * _LATER))
    worker.bells.ring_for_a_part(_TASK)
    assert worker.heard() == ""


def test_log_records_wake_the_collector_if_it_sleeps(worker: _Worker) -> None:
    worker.board.words[BACK] = WHEN_FULL
    worker.bells.ring_for_logs()
    assert worker.heard() == "back"
    worker.bells.ring_for_logs()
    assert worker.heard() == ""
    for late in (False, True):
        worker.board.words[LOGS_LATE] = late
        assert worker.bells.logs_are_late() == late


def test_news_of_the_worker_itself_wake_both_threads(worker: _Worker) -> None:
    worker.board.words[FRONT] = 1
    worker.board.words[BACK] = WHEN_FULL
    worker.bells.ring_all()
    assert worker.heard() == "front back"


@pytest.mark.parametrize("bell", ["front", "back"])
def test_outcomes_that_follow_each_other_quickly_ring_once_but_the_last_one_rings(
    worker: _Worker, bell: str
) -> None:
    def sleep() -> None:
        if bell == "front":
            worker.board.words[FRONT] = 1
            worker.board.words[WANTED] = SOON
        else:
            worker.board.words[BACK] = ALWAYS

    sleep()
    assert worker.rung(_THEN) == bell
    sleep()
    assert worker.rung(_SOON_AFTER) == ""
    assert worker.rung(_SOON_AFTER, idle=True) == bell
    sleep()
    assert worker.rung(_LATER) == bell


@pytest.mark.parametrize(
    "level, for_room, for_tasks, for_outcomes",
    [(WHEN_FULL, "back", "", ""), (WHEN_LOW, "back", "back", ""), (ALWAYS, "back", "back", "back")],
    ids=["when full", "when low", "always"],
)
def test_it_rings_for_the_collector_as_often_as_that_wants(
    worker: _Worker, level: int, for_room: str, for_tasks: str, for_outcomes: str
) -> None:
    def sleep() -> None:
        worker.board.words[BACK] = level

    sleep()
    assert worker.rung() == for_outcomes
    worker.channel.words[LOW] = 2
    # So soon after the last ring that only the inbox can be the reason.
    sleep()
    assert worker.rung(_LATER + 1) == for_tasks
    worker.channel.words[LOW] = 0
    worker.fill_the_outbox()
    sleep()
    assert worker.rung(_LATER + 2) == for_room


def test_one_of_two_sleeping_threads_is_enough(worker: _Worker) -> None:
    """The leader fetches all outcomes."""
    worker.board.words[FRONT] = 1
    worker.board.words[WANTED] = _TASK
    worker.board.words[BACK] = ALWAYS
    assert worker.rung(idle=True) == "front"
    assert worker.board.words[BACK] == ALWAYS
