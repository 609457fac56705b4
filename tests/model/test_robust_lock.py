"""The robust lock, in every interleaving: no living holder loses it, and nobody waits for ever.

A minimum of states is expected, so that a model that takes no steps cannot pass.
"""

from __future__ import annotations

import os

import pytest

from tests.model.checker import Violation, explore
from tests.model.robust_lock_model import RobustLockModel, State, arrived, waits, wrong

#: If set, three processes are checked for progress as well, which takes a minute or two.
THOROUGH = bool(os.environ.get("MPKIT_THOROUGH_MODELS"))


@pytest.mark.parametrize("joining", [False, True])
def test_two_processes_with_progress(joining: bool) -> None:
    model = RobustLockModel(joining=joining)
    found = explore([model.start(2)], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits, arrived)
    assert len(found.came) > 1000


def test_three_processes_that_come_and_go() -> None:
    model = RobustLockModel(joining=True)
    found = explore([model.start(3)], model.steps, wrong, remember_fair_steps=THOROUGH)
    if THOROUGH:
        found.stuck(waits, arrived)
    assert len(found.came) > 50_000


def test_after_a_death_with_the_lock_two_living_processes_go_on() -> None:
    model = RobustLockModel()
    found = explore([model.start_with_a_dead_holder(3)], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits, arrived)


@pytest.mark.parametrize(
    "without, joining, processes",
    [
        ("before the try", False, 2),
        ("completed", False, 2),
        ("watch", False, 2),
        ("inside first", False, 2),
        ("outside last", False, 2),
        ("stay while inside", False, 2),
        ("join alone", True, 2),
        ("file lock", False, 3),
    ],
)
def test_each_guard_is_needed(without: str, joining: bool, processes: int) -> None:
    """Without any one of these precautions there is a violation, and the checker finds it.

    If this failed for one, either it would be superfluous, or the model too coarse to show what it is for.
    """
    model = RobustLockModel(without=without, joining=joining)
    start: State = model.start(processes) if processes == 2 else model.start_with_a_dead_holder(processes)
    with pytest.raises(Violation) as caught:
        explore([start], model.steps, wrong)
    assert caught.value.trace
