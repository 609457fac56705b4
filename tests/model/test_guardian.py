"""The guardian, in every interleaving: it ends each child that has lost its parent, and no other."""

from __future__ import annotations

import pytest

from tests.model.checker import Violation, explore
from tests.model.guardian_model import PROGRAMS, GuardianModel, arrived, waits_for, wrong


def check(name: str, model: GuardianModel) -> int:
    """Explore the model and check that nobody is forgotten; return the number of states.

    The tests expect a minimum, so that a model that takes no steps cannot pass.
    """
    found = explore([model.begin()], model.steps, wrong, remember_fair_steps=True)
    found.stuck(waits_for(PROGRAMS[name]), arrived)
    return len(found.came)


@pytest.mark.parametrize("blind", [False, True], ids=["events", "looking"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_every_order_of_deaths(name: str, blind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(name, GuardianModel(PROGRAMS[name], monkeypatch, blind=blind)) > 100


@pytest.mark.parametrize("blind", [False, True], ids=["events", "looking"])
def test_an_orphan_while_two_things_happen_at_once(blind: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    model = GuardianModel(PROGRAMS["an orphan"], monkeypatch, blind=blind, at_once=2)
    assert check("an orphan", model) > 100


# Not with a child that hangs before it registers itself: only the guardian could end that one.
@pytest.mark.parametrize("name", [name for name, programs in PROGRAMS.items() if all(programs.values())])
def test_the_guardian_may_be_killed_too(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert check(name, GuardianModel(PROGRAMS[name], monkeypatch, may_be_killed=True)) > 100


def test_without_process_descriptors_the_line_has_to_be_looked_at_last(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = GuardianModel(PROGRAMS["an orphan"], monkeypatch, blind=True, at_once=2, without="the line last")
    with pytest.raises(Violation, match="an orphan was killed"):
        check("an orphan", model)


@pytest.mark.parametrize(
    "without, name, may_be_killed",
    [
        ("both fixes", "two children", False),
        ("all lines first", "an orphan", False),
        ("lines before ends", "an orphan", False),
        ("one more look", "an orphan", False),
        ("the parent tells", "two children, one of which hangs before it registers itself", False),
        ("the child tells", "two children", False),
        ("a thread", "two children", True),
    ],
)
def test_each_guard_is_needed(
    without: str, name: str, may_be_killed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without any one of these precautions there is a violation, and the checker finds it.

    If this failed for one, either it would be superfluous, or the model too coarse to show what it is for.
    "both fixes" is code that was in use once.
    """
    model = GuardianModel(PROGRAMS[name], monkeypatch, may_be_killed=may_be_killed, without=without)
    with pytest.raises(Violation) as caught:
        check(name, model)
    assert caught.value.trace
