"""Workers that leave or are sent home: each with the least that has kept a pool waiting, or broken it."""

from __future__ import annotations

import os
import signal

import pytest

from mpkit._platform import identity
from mpkit.errors import ClosedError, PoolBroken
from mpkit.pool import TaskPool, _crew
from mpkit.pool._worker import _Worker
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


def test_workers_that_are_sent_home_while_they_start_are_no_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each counted as a start-up that had failed: ten of them made a closed pool a broken one."""
    monkeypatch.setattr(_Worker, "prepare", lambda _worker: signal.pause())
    pool = TaskPool(_crew.MOST_KILLED, context="fork")
    pool.close()
    assert pool.join(PATIENCE)
    with pytest.raises(ClosedError) as caught:
        pool.submit(tasks.square, 3)
    assert not isinstance(caught.value, PoolBroken)


def test_a_worker_that_nobody_can_look_at_does_not_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """It passed for dead, and was left alone: the program waited for it at its end."""
    look = identity.of
    first: list[int] = []

    def of(pid: int) -> identity.ProcessIdentity | None:
        # As if there were no descriptor left.
        first[:] = first or [pid]
        return None if pid in first else look(pid)

    monkeypatch.setattr(identity, "of", of)
    with TaskPool(1, context="fork") as pool:
        assert pool.submit(tasks.square, 3).result(PATIENCE) == 9
        assert pool.submit(os.getpid).result(PATIENCE) not in first
        # Its exit code has been taken: nothing of it is left, not even a zombie.
        with pytest.raises(ProcessLookupError):
            os.kill(first[0], 0)
