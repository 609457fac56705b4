"""When the pool gives up starting workers."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from mpkit.errors import PoolBroken, SharedMemoryExhausted
from mpkit.pool._engine import start_ups as _start_ups
from mpkit.pool._engine.roster import Roster
from mpkit.pool._engine.start_ups import MOST_FAILURES, MOST_KILLED, Failure, StartUps


def test_only_failures_in_a_row_count() -> None:
    roster = Roster()
    start_ups = StartUps(Mock(), roster)
    for _ in range(3 * MOST_FAILURES):
        assert start_ups.note_failure("no memory", Failure.RAISED) is None
        roster.hellos += 1  # another worker has started
    for _ in range(MOST_FAILURES - 1):
        assert start_ups.note_failure("no memory", Failure.RAISED) is None
    assert "no memory" in str(start_ups.note_failure("no memory", Failure.RAISED))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EAGAIN, "Resource temporarily unavailable"),
        SharedMemoryExhausted("no room"),
        MemoryError("no memory"),
        PoolBroken("the fork server has died"),
    ],
)
def test_a_temporary_error_is_retried_for_longer_and_reported_as_such(error: Exception) -> None:
    options = Mock()
    options.context.get_start_method.return_value = "forkserver"
    start_ups = StartUps(options, Roster())
    for _ in range(MOST_KILLED - 1):
        assert start_ups.note_error(error) is None
    broken = start_ups.note_error(error)
    assert isinstance(broken, PoolBroken)
    assert broken.__cause__ is error
    assert str(error) in str(broken)
    assert ("raise the limit" in str(broken)) is not isinstance(error, PoolBroken)
    assert "__main__" not in str(broken)


def test_each_pause_is_twice_as_long_as_the_one_before_up_to_two_seconds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_start_ups, "CLOCK", SimpleNamespace(monotonic=lambda: 100.0))
    start_ups = StartUps(Mock(), Roster())
    pauses: list[float] = []
    for _ in range(MOST_KILLED):
        start_ups.note_failure("it was killed", Failure.KILLED)
        pauses.append(round(start_ups.not_before - 100.0, 6))
    assert pauses == [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, *[2.0] * 4]


def test_a_permanent_error_breaks_the_pool_soon() -> None:
    start_ups = StartUps(Mock(), Roster())
    for _ in range(MOST_FAILURES - 1):
        assert start_ups.note_error(ValueError("something else")) is None
    broken = str(start_ups.note_error(ValueError("something else")))
    assert "something else" in broken
    # No worker was running: so the error must not speak of the main module, nor of its error output.
    assert "printed" not in broken
    assert "__main__" not in broken
