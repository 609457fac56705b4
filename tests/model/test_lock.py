"""The lock with an owner, in every interleaving: no living owner loses it, and nobody waits for ever.

A minimum of states is expected, so that a model that takes no steps cannot pass.
"""

from __future__ import annotations

import os

import pytest

from tests.model.checker import Violation, explore
from tests.model.lock_model import LockModel, arrived, waits, wrong

#: If set, three processes are checked with interrupts, agents and progress as well, which takes some minutes.
THOROUGH = bool(os.environ.get("MPKIT_THOROUGH_MODELS"))


@pytest.mark.parametrize("agents", [False, True])
@pytest.mark.parametrize("interrupts", [False, True])
def test_two_processes_with_progress(interrupts: bool, agents: bool) -> None:
    model = LockModel(interrupts=interrupts, agents=agents)
    found = explore([model.start(2)], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits, arrived)
    assert len(found.came) > 1000


def test_three_processes() -> None:
    model = LockModel(agents=THOROUGH, interrupts=THOROUGH)
    found = explore([model.start(3)], model.steps, wrong, remember_fair_steps=THOROUGH)
    if THOROUGH:
        found.stuck(waits, arrived)
    assert len(found.came) > 50_000


def test_the_lock_of_a_dead_owner_goes_on() -> None:
    model = LockModel(agents=True, interrupts=True)
    found = explore([model.start_with_a_dead_owner(3)], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits, arrived)


@pytest.mark.parametrize(
    "without, processes",
    [
        ("releasing", 2),
        ("held last", 2),
        ("dead first", 2),
        ("alone", 3),
        ("not their heir", 2),
        ("before the try", 2),
        ("completed", 2),
        ("completed before out", 2),
        ("watch", 2),
        ("file lock", 3),
    ],
)
def test_each_guard_is_needed(without: str, processes: int) -> None:
    """Without any one of these precautions there is a violation, and the checker finds it.

    If this failed for one, either it would be superfluous, or the model too coarse to show what it is for.
    """
    model = LockModel(without=without, agents=without == "alone", interrupts=False)
    dead = without == "file lock"
    start = model.start_with_a_dead_owner(processes) if dead else model.start(processes)
    with pytest.raises(Violation) as caught:
        explore([start], model.steps, wrong)
    assert caught.value.trace
