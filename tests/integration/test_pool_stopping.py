"""Tasks that are being stopped: each with the least that has once let one run on."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from mpkit.errors import TaskTimeout
from mpkit.pool import TaskPool, _supervisor
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")

#: A grace period that is never over.
_FOR_EVER = 1e6


def test_a_task_that_is_being_stopped_is_held_to_the_memory_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It had its grace period to take what it liked."""
    begun = tmp_path / "begun"
    limit = 1 << 40
    with TaskPool(1, context="fork", max_memory_bytes=limit, grace_period=_FOR_EVER) as pool:
        handle = pool.with_options(timeout=0.1).submit(tasks.ignore_interrupts, str(begun))
        lane = next(iter(pool._engine.dispatcher.lanes.values()))
        # On a machine that stands still for long the interrupt may come before the task ignores it.
        wait_until(lambda: handle.done() or (begun.exists() and lane.stop), "it is being stopped")
        monkeypatch.setattr(_supervisor, "rss_bytes", lambda _pid: 2 * limit)
        with pytest.raises(TaskTimeout):
            handle.result(PATIENCE)
