"""When the pool gives up starting workers."""

from __future__ import annotations

from unittest.mock import Mock

from mpkit.pool._crew import MOST_FAILURES, Crew
from mpkit.pool._dispatcher import Dispatcher


def test_only_failures_in_a_row_count() -> None:
    dispatcher = Dispatcher(lambda: None)
    crew = Crew(Mock(), dispatcher, Mock(), None)
    for _ in range(3 * MOST_FAILURES):
        assert crew.note_failure("no memory", killed=False) is None
        dispatcher.hellos += 1  # another one has started well
    for _ in range(MOST_FAILURES - 1):
        assert crew.note_failure("no memory", killed=False) is None
    assert "no memory" in str(crew.note_failure("no memory", killed=False))
