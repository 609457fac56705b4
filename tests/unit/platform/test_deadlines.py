"""`mpkit._platform.threads.deadlines`: which timeouts are valid, and how much time is left."""

from __future__ import annotations

import math
import runpy
import time
from decimal import Decimal
from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from mpkit._platform.threads import clock, deadlines
from mpkit._platform.threads.deadlines import (
    check_seconds,
    check_timeout,
    deadline_of,
    not_negative,
    remaining,
)


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, None),
        (0, 0.0),
        (1.5, 1.5),
        (True, 1.0),
        (Decimal("0.25"), 0.25),
        (Fraction(1, 2), 0.5),
        (math.inf, None),
        (10**400, None),
        (-0.0, 0.0),
    ],
)
def test_accepts_every_kind_of_number(given: float | None, expected: float | None) -> None:
    assert check_timeout(given) == expected


@pytest.mark.parametrize("given", [-1, -0.001, math.nan, -math.inf, -(10**400), Decimal("NaN")])
def test_refuses_negative_and_nan(given: float) -> None:
    with pytest.raises(ValueError, match="grace_period must be a number of seconds") as caught:
        check_timeout(given, name="grace_period")
    assert repr(given)[:100] in str(caught.value)


@pytest.mark.parametrize("given", ["3", b"3", object(), [1], 1j])
def test_refuses_what_is_no_number(given: object) -> None:
    with pytest.raises(TypeError, match="timeout must be a number of seconds or None") as caught:
        check_timeout(given)  # type: ignore[arg-type]
    assert repr(given) in str(caught.value)


@pytest.mark.parametrize("given", [-1, math.nan, math.inf, None, "3"])
def test_the_error_about_a_finite_duration_does_not_recommend_none(given: float | None) -> None:
    with pytest.raises((ValueError, TypeError), match="pause must be a finite number of seconds") as caught:
        check_seconds(given, name="pause")  # type: ignore[arg-type]
    assert f"got {given!r}" in str(caught.value)
    assert "None for no limit" not in str(caught.value)


@pytest.mark.parametrize(
    "given, expected", [(None, None), (-1, 0), (-math.inf, 0), (Decimal(-1), 0), (2.5, 2.5)]
)
def test_a_negative_timeout_may_count_as_zero(given: float | None, expected: float | None) -> None:
    assert not_negative(given) == expected


@pytest.mark.parametrize("given", [math.nan, Decimal("NaN"), "3", [1], 1j])
def test_what_is_no_number_is_left_for_the_check(given: Any) -> None:
    assert not_negative(given) is given
    with pytest.raises((ValueError, TypeError), match="timeout must be a number"):
        check_timeout(not_negative(given))


def test_a_duration_that_must_end() -> None:
    assert [check_seconds(given, name="pause") for given in (0, 1.5, Fraction(1, 2))] == [0.0, 1.5, 0.5]


def test_a_deadline_counts_down_and_never_below_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(deadlines, "CLOCK", SimpleNamespace(monotonic=lambda: now))
    deadline = deadline_of(2.5)
    assert remaining(deadline) == 2.5
    now = 102.0
    assert remaining(deadline) == 0.5
    now = 200.0
    assert remaining(deadline) == 0.0


def test_no_deadline_is_for_ever() -> None:
    assert deadline_of(None) is None
    assert remaining(None) is None


def test_mpkit_uses_the_real_clocks_even_if_it_is_loaded_while_they_are_replaced(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """``import mpkit`` loads nothing, so its modules may be loaded while a test has replaced the clocks."""
    before = time.monotonic()
    for name in ("monotonic", "monotonic_ns", "time"):
        monkeypatch.setattr(time, name, lambda: 0)
    there = runpy.run_path(clock.__file__)["CLOCK"]
    assert there.monotonic() >= before
    assert there.monotonic_ns() >= before
    assert there.time() >= before
