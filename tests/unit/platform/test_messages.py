"""`mpkit._platform.messages`: values in the texts of errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from mpkit import BoundedQueue, LockedCounter, TaskPool, WorkerProcess
from mpkit._platform.messages import shown
from mpkit._platform.threads.deadlines import check_timeout
from mpkit.pool._engine.options import PoolOptions, TaskOptions, check_count


class Unprintable:
    """Has no `repr`."""

    def __repr__(self) -> str:
        raise LookupError("no repr")


def nested() -> list[Any]:
    """A list in which so many others are nested that `repr` gives up."""
    outer: list[Any] = []
    for _ in range(100_000):
        outer = [outer]
    return outer


#: More digits than Python converts to text.
HUGE = 10**5000


@pytest.mark.parametrize("value", [None, 1.5, "text", [1, 2], -(10**100)])
def test_what_is_short_is_shown_as_it_is(value: object) -> None:
    assert shown(value) == repr(value)


def test_what_is_long_is_cut() -> None:
    text = shown([1] * 100_000)
    assert text.startswith("[1, 1, 1")
    assert text.endswith("...")
    assert len(text) < 300


@pytest.mark.parametrize(
    "make, kind", [(Unprintable, "Unprintable"), (lambda: HUGE, "int"), (nested, "list")]
)
def test_what_has_no_repr_is_shown_as_its_type(make: Callable[[], object], kind: str) -> None:
    assert shown(make()) == f"<unprintable {kind} object>"


def refusals(wrong: Any) -> list[Any]:
    """Calls that refuse an argument because of its type."""
    return [
        lambda: check_timeout([wrong]),  # type: ignore[arg-type]  # what is tested
        lambda: check_count([wrong], "processes"),
        lambda: TaskOptions(pickler=wrong),
        lambda: PoolOptions(1, None, (), None, [wrong]),  # type: ignore[arg-type]
        lambda: PoolOptions(1, [wrong], (), None, None),  # type: ignore[arg-type]
        lambda: PoolOptions(1, None, (), None, None, name=[wrong]),  # type: ignore[arg-type]
        lambda: BoundedQueue([wrong]),  # type: ignore[arg-type]
        lambda: LockedCounter([wrong]),  # type: ignore[arg-type]
        lambda: WorkerProcess(target=[wrong]),  # type: ignore[arg-type]
        lambda: WorkerProcess(name=[wrong]),  # type: ignore[arg-type]
        lambda: WorkerProcess(kwargs=[wrong]),  # type: ignore[arg-type]
    ]


@pytest.mark.parametrize("number", range(len(refusals(None))))
@pytest.mark.parametrize("wrong", [Unprintable(), HUGE], ids=["no repr", "too many digits"])
def test_an_argument_that_cannot_be_shown_is_refused_as_any_other(number: int, wrong: object) -> None:
    with pytest.raises(
        (TypeError, ValueError), match=r"(got|not) <unprintable (list|int|Unprintable) object>"
    ):
        refusals(wrong)[number]()


@pytest.mark.parametrize(
    "call",
    [
        lambda: check_timeout(-HUGE),
        lambda: check_count(-HUGE, "processes"),
        lambda: BoundedQueue(HUGE),
        lambda: BoundedQueue(max_bytes=-HUGE),
        lambda: LockedCounter(HUGE),
        lambda: WorkerProcess(max_memory_bytes=-HUGE),
        lambda: TaskPool(processes=-HUGE),
    ],
)
def test_a_number_of_too_many_digits_is_refused_for_what_it_is(call: Any) -> None:
    with pytest.raises((ValueError, OverflowError), match=r"must .*<unprintable int object>"):
        call()


def test_a_counter_says_that_such_a_number_is_too_much() -> None:
    with pytest.raises(OverflowError, match="1 would become <unprintable int object>"):
        LockedCounter(1).add(HUGE)
