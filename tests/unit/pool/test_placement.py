"""Which worker gets how many tasks, which one gives some away, and when a worker asks for more."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import Task
from mpkit.pool._engine.placement import Placement, even_share, low_marks, most_loaded, stolen_share
from mpkit.pool._engine.roster import Roster

#: Its content does not matter here.
A_TASK = cast("Task", object())


def a_lane(key: int, sent: int = 0, tasks: int | None = None) -> Lane:
    process: Any = None
    channel: Any = SimpleNamespace(words=[0] * 64)
    lane = Lane(key, channel, process, None, stack_pipe=None, maxtasksperchild=tasks, oom_kills=None)
    lane.sent = dict.fromkeys(range(sent), A_TASK)
    lane.greeted = lane.ready = True
    return lane


def a_roster(*lanes: Lane) -> Roster:
    roster = Roster()
    roster.lanes = {lane.key: lane for lane in lanes}
    return roster


def a_function(ahead: int) -> Function:
    function = Function("f", b"")
    function.ahead = ahead
    return function


def test_the_worker_that_became_idle_last_comes_first() -> None:
    first, second, third = lanes = [a_lane(key) for key in range(3)]
    roster = a_roster(*lanes)
    placement = Placement(roster)
    for lane in (first, third, second):
        roster.note_if_idle(lane)
    # Last in, first out: the worker that became idle last may still be awake.
    assert [placement.choose(a_function(1)) for _ in range(4)] == [second, third, first, None]


@pytest.mark.parametrize("why", ["not ready", "has a task", "its last one"])
def test_a_worker_that_is_not_idle_any_more_is_skipped(why: str) -> None:
    lane = a_lane(0, tasks=1)
    roster = a_roster(lane)
    roster.note_if_idle(lane)
    if why == "not ready":
        lane.ready = False
    elif why == "has a task":
        lane.sent[7] = A_TASK
    else:
        lane.maxtasksperchild = 0
    assert Placement(roster).choose(a_function(256)) is None
    assert not roster.idle


def test_short_tasks_go_ahead_to_one_until_it_is_full_and_then_to_the_next() -> None:
    first, second = a_lane(0, sent=1), a_lane(1, sent=1)
    placement = Placement(a_roster(first, second))
    given: list[int] = []
    while (lane := placement.choose(a_function(3))) is not None:
        given.append(lane.key)
        lane.sent[len(lane.sent)] = A_TASK
    assert given == [0, 0, 1, 1]
    # Long tasks are given only to idle workers.
    first.sent.clear()
    assert placement.choose(a_function(1)) is None
    placement.forget_favourite()
    assert placement.choose(a_function(3)) is first


def test_an_idle_worker_gets_its_last_task_at_once() -> None:
    lane = a_lane(0, tasks=1)
    roster = a_roster(lane)
    roster.note_if_idle(lane)
    assert Placement(roster).choose(a_function(1)) is lane


def test_no_worker_gets_more_tasks_than_it_will_run() -> None:
    lane = a_lane(0, sent=2, tasks=3)
    placement = Placement(a_roster(lane))
    assert placement.choose(a_function(256)) is lane
    lane.sent[2] = A_TASK
    assert placement.choose(a_function(256)) is None


@pytest.mark.parametrize("queued, workers, share", [(7, 2, 4), (8, 2, 4), (1, 4, 1), (5, 0, 5)])
def test_the_queue_is_shared_out_evenly(queued: int, workers: int, share: int) -> None:
    assert even_share(queued, workers) == share


def test_tasks_are_stolen_from_the_worker_with_most_unless_it_has_begun_all() -> None:
    few, many = a_lane(0, sent=2), a_lane(1, sent=5)
    assert most_loaded([few, many]) is many
    assert most_loaded([a_lane(0, sent=1), a_lane(1)]) is None
    assert most_loaded([]) is None


@pytest.mark.parametrize("unbegun, room, share", [(1, 9, 1), (4, 9, 2), (5, 9, 3), (5, 2, 2)])
def test_a_thief_takes_the_older_half(unbegun: int, room: int, share: int) -> None:
    assert stolen_share(unbegun, room) == share


@pytest.mark.parametrize(
    "sent, queued, marks",
    [([0, 9], 3, [1, 5]), ([9, 0], 0, [1, 1]), ([1, 1], 0, [0, 0]), ([], 0, [])],
    ids=["half of what it has", "another one has more", "nothing is left", "nobody"],
)
def test_when_a_worker_rings_for_more(sent: list[int], queued: int, marks: list[int]) -> None:
    assert low_marks(sent, queued) == marks
