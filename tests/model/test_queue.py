"""The ring and the queue, in every interleaving: no item is lost, duplicated, torn or out of order, and no
region is freed while it is used.

The tests of guards leave out one precaution each, and expect a violation: if there were none, the precaution
would be superfluous, or the model too coarse to show what it is for.
"""

from __future__ import annotations

import pytest

from tests.model import queue_model, ring_model
from tests.model.checker import Violation, explore
from tests.model.queue_model import QueueModel
from tests.model.ring_model import NUMBERS, RingModel


@pytest.mark.parametrize("capacity, lengths", [(3, (1, 2)), (4, (1, 2)), (4, (1, 3)), (5, (2, 3))])
def test_a_ring(capacity: int, lengths: tuple[int, ...]) -> None:
    model = RingModel(capacity, lengths)
    found = explore([model.start()], model.steps, ring_model.wrong, remember_fair_steps=True)
    found.stuck(lambda _state: True, ring_model.idle)
    assert any(len(state.queued) == capacity // min(lengths) for state in found.came), "never full"


@pytest.mark.parametrize("capacity, lengths", [(3, (1, 2)), (4, (2, 3)), (5, (2, 3))])
def test_a_ring_with_packs(capacity: int, lengths: tuple[int, ...]) -> None:
    model = RingModel(capacity, lengths, packs=True)
    found = explore([model.start()], model.steps, ring_model.wrong, remember_fair_steps=True)
    found.stuck(lambda _state: True, ring_model.idle)
    # The run reached a state in which one item of a pack is taken, and the head is still at the pack.
    assert any(
        state.words[state.head[1]][:2] == ("pack", (state.head[0] - 1) % NUMBERS)
        for state in found.came
        if state.queued
    )


@pytest.mark.parametrize("without", ["stay", "count from the head", "head last", "tail last"])
def test_each_guard_of_packs_is_needed(without: str) -> None:
    model = RingModel(3, (1, 2), packs=True, without=without)
    with pytest.raises(Violation) as caught:
        explore([model.start()], model.steps, ring_model.wrong)
    assert caught.value.trace


@pytest.mark.parametrize("without", ["tail last", "wrap before tail", "head last", "count", "end"])
def test_each_guard_of_a_ring_is_needed(without: str) -> None:
    model = RingModel(3, (1, 2), without=without)
    with pytest.raises(Violation) as caught:
        explore([model.start()], model.steps, ring_model.wrong)
    assert caught.value.trace


@pytest.mark.parametrize(
    "items, putters, getters, regions, deaths",
    [(2, 1, 1, 1, 1), (3, 1, 1, 2, 2), (2, 2, 1, 2, 2), (2, 2, 2, 1, 1), (2, 2, 2, 2, 1)],
)
def test_a_queue(items: int, putters: int, getters: int, regions: int, deaths: int) -> None:
    model = QueueModel(items)
    start = model.start(putters, getters, regions, deaths)
    found = explore([start], model.steps, queue_model.wrong, remember_fair_steps=True)
    # As long as a getter lives, queued items can be taken.
    found.stuck(queue_model.waits, queue_model.arrived)


@pytest.mark.parametrize(
    "without, items, putters, getters, regions, deaths, shutting",
    [
        ("generation first", 2, 1, 1, 1, 0, False),
        ("generation first", 2, 1, 1, 1, 0, True),
        ("shut first", 2, 1, 1, 1, 0, True),
        ("counts first", 2, 1, 1, 1, 0, False),
        ("held first", 2, 1, 1, 1, 0, False),
        ("repair", 2, 2, 2, 1, 1, False),
        ("not taken yet", 2, 1, 1, 1, 1, False),
        ("alive", 2, 2, 1, 1, 0, False),
        ("first", 4, 1, 1, 2, 0, False),
        ("begin first", 2, 1, 1, 1, 0, False),
        ("queued first", 2, 1, 1, 1, 0, False),
    ],
)
def test_each_guard_of_a_queue_is_needed(
    without: str, items: int, putters: int, getters: int, regions: int, deaths: int, shutting: bool
) -> None:
    model = QueueModel(items, without=without, shutting=shutting)
    with pytest.raises(Violation) as caught:
        explore([model.start(putters, getters, regions, deaths)], model.steps, queue_model.wrong)
    assert caught.value.trace
