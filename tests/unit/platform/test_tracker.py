"""The resource tracker is told of every name once, and never in the middle of being told."""

from __future__ import annotations

import sys

import pytest

from mpkit._platform import seam, tracker

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is none on Windows")

NAME = "/mpkit-not-there"


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    told: list[tuple[str, str, str]] = []
    monkeypatch.setattr(seam, "tracker_register", lambda name, rtype: told.append(("+", name, rtype)))
    monkeypatch.setattr(seam, "tracker_unregister", lambda name, rtype: told.append(("-", name, rtype)))
    return told


def test_it_is_told(told: list[tuple[str, str, str]]) -> None:
    tracker.track(NAME, "semaphore")
    tracker.untrack(NAME, "semaphore")
    assert told == [("+", NAME, "semaphore"), ("-", NAME, "semaphore")]


def test_what_is_taken_back_in_the_middle_of_a_call_is_told_by_the_next(
    told: list[tuple[str, str, str]],
) -> None:
    """As a garbage collection does: on 3.10 it would wait for itself, later it would be refused."""
    with seam.tracker_lock():
        tracker.untrack(NAME, "semaphore")
    assert told == []
    tracker.track(NAME, "shared_memory")
    assert told == [("+", NAME, "shared_memory"), ("-", NAME, "semaphore")]
