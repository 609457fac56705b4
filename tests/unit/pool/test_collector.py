"""Leader and followers: who fetches outcomes when the one who did has left."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest

from mpkit._platform.hints import override
from mpkit.pool import TaskPool
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


class _Condition(threading.Condition):
    """Tells that somebody has been woken at it."""

    def __init__(self) -> None:
        super().__init__()
        self.notified = False

    @override
    def notify_all(self) -> None:
        self.notified = True
        super().notify_all()


class _Waiting:
    """Somebody who waits, as the collector knows it."""

    task_id = 0

    def __init__(self, is_settled: Callable[[], bool]) -> None:
        self._is_settled = is_settled
        self.condition = _Condition()

    def _ensure_condition(self) -> threading.Condition:
        return self.condition


def test_a_follower_who_has_no_use_for_the_lead_hands_it_on() -> None:
    """Else the next one sleeps until its slice is over: the leader has offered the lead to this one."""
    with TaskPool(1, context="fork") as pool:
        collector: Any = pool._engine.collector
        leads, leave = threading.Event(), threading.Event()

        def lead() -> None:
            with collector._front:
                leads.set()
                assert leave.wait(PATIENCE)

        leader = threading.Thread(target=lead)
        leader.start()
        assert leads.wait(PATIENCE)
        other = _Waiting(lambda: False)
        collector._followers[other] = other

        def is_settled() -> bool:
            # Asked before it follows, and again just before it would sleep: then the leader leaves, and the
            # outcome is there.
            if this not in collector._followers.values():
                return not leader.is_alive()
            leave.set()
            leader.join(PATIENCE)
            return True

        this = _Waiting(is_settled)
        try:
            assert collector.wait_for(this, PATIENCE)
            assert other.condition.notified
            assert not this.condition.notified
        finally:
            leave.set()
            leader.join(PATIENCE)
            del collector._followers[other]
