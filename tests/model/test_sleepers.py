"""Sleeping and waking, in every interleaving: no wake-up is lost, and a death costs a slice or two.

The test of guards leaves out one precaution each, and expects a violation: if there were none, the precaution
would be superfluous, or the model too coarse to show what it is for.
"""

from __future__ import annotations

import pytest

from tests.model.checker import Violation, explore
from tests.model.sleepers_model import SleepersModel, arrived, waits, wrong


@pytest.mark.parametrize(
    "getters, putters, once",
    [
        (1, (3,), False),
        (1, (2, 2), False),
        (2, (3,), False),
        (2, (1, 1), False),
        (2, (2,), True),
        (2, (1, 1), True),
        (3, (3,), True),
    ],
)
def test_without_deaths_no_slice_is_needed(getters: int, putters: tuple[int, ...], once: bool) -> None:
    model = SleepersModel(slices=False, once=once)
    found = explore([model.start(getters, putters)], model.steps, wrong, remember_fair_steps=True)
    if not once:
        found.stuck(waits, arrived)


@pytest.mark.parametrize("getters, putters, deaths", [(1, (2, 1), 1), (1, (1, 1), 2), (2, (2,), 1)])
def test_a_death_costs_a_slice_or_two_and_nothing_later(
    getters: int, putters: tuple[int, ...], deaths: int
) -> None:
    # Deaths may happen but need not, so this also covers runs in which slices end and nobody dies.
    model = SleepersModel(slices=True)
    start = model.start(getters, putters, deaths=deaths)
    found = explore([start], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits, arrived)


@pytest.mark.parametrize(
    "without, getters, putters, deaths, once",
    [
        ("second look", 1, (3,), 0, False),
        ("barrier", 1, (3,), 0, False),
        ("look afterwards", 1, (3,), 0, False),
        ("publish first", 1, (3,), 0, False),
        ("hand back", 1, (3,), 0, False),
        ("quiet", 2, (2,), 0, True),
        ("glance", 3, (3,), 0, True),
        ("pass on", 2, (2,), 0, True),
        ("renew", 1, (2, 1), 1, False),
    ],
)
def test_each_guard_is_needed(
    without: str, getters: int, putters: tuple[int, ...], deaths: int, once: bool
) -> None:
    model = SleepersModel(without=without, slices=bool(deaths), once=once)
    with pytest.raises(Violation) as caught:
        explore([model.start(getters, putters, deaths=deaths)], model.steps, wrong)
    assert caught.value.trace
