"""Finding out which processes were started before a certain moment."""

from __future__ import annotations

import subprocess
import sys
import time
from types import SimpleNamespace

import pytest

from mpkit._platform.processes import identity, start_times
from mpkit._platform.processes.start_times import StartClock
from tests.helpers.waiting import wait_until


def test_a_process_starts_between_before_and_after() -> None:
    clock = StartClock()
    before = clock.at(time.monotonic_ns())
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        who = identity.of(process.pid)
        assert who is not None
        assert before <= who.started
        wait_until(lambda: clock.at(time.monotonic_ns()) > who.started, "time goes on")


@pytest.mark.parametrize("at_first", [True, False])
def test_a_clock_that_has_jumped_makes_the_moment_earlier(
    monkeypatch: pytest.MonkeyPatch, at_first: bool
) -> None:
    now = start_times._now_ns
    clock = StartClock()
    with monkeypatch.context() as patch:
        # As after the machine was suspended for an hour, or before the clock was set back.
        patch.setattr(start_times, "_now_ns", lambda: now() + 3600 * 10**9)
        if at_first:
            clock = StartClock()
        else:
            assert clock.at(time.monotonic_ns()) < start_times._started(now()) + 1
    assert clock.at(time.monotonic_ns()) <= start_times._started(now())


def test_a_reading_that_was_interrupted_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    ahead, now = 5 * 10**9, 0
    late = iter([10**7, 10**7])

    def read() -> int:
        """As if the core were lost just then; the real clocks stand still for nobody."""
        nonlocal now
        told = now + ahead
        now += next(late, 0)
        return told

    monkeypatch.setattr(start_times, "CLOCK", SimpleNamespace(monotonic_ns=lambda: now))
    monkeypatch.setattr(start_times, "_now_ns", read)
    assert start_times._gap_ns() == ahead
    assert next(late, None) is None
