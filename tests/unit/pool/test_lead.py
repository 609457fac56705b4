"""Leader and followers: one waiting thread (the leader) fetches outcomes for all; who does when it leaves."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from mpkit._platform.hints import override
from mpkit.pool import TaskPool
from tests.helpers.stepping import interrupt_at, needs_a_trace_that_raises
from tests.helpers.waiting import PATIENCE

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")


class _Condition(threading.Condition):
    """Records that somebody was notified."""

    def __init__(self) -> None:
        super().__init__()
        self.notified = False

    @override
    def notify_all(self) -> None:
        self.notified = True
        super().notify_all()


class _Waiting:
    """Imitates a waiting handle."""

    task_id = 0

    def __init__(self, is_settled: Callable[[], bool]) -> None:
        self._is_settled = is_settled
        self.condition = _Condition()

    def _ensure_condition(self) -> threading.Condition:
        return self.condition


def follow_and_leave(
    lead: Any, wait: Callable[[Callable[[], object]], object] = lambda wait_for: wait_for()
) -> tuple[_Waiting, _Waiting]:
    """Wait as a follower, while another thread leads and leaves just when the outcome arrives.

    Returns the follower and a second one.
    """
    leads, leave = threading.Event(), threading.Event()

    def keep_the_lead() -> None:
        with lead._front:
            leads.set()
            assert leave.wait(PATIENCE)

    leader = threading.Thread(target=keep_the_lead)
    leader.start()
    assert leads.wait(PATIENCE)
    other = _Waiting(lambda: False)
    lead._followers[other] = other

    def is_settled() -> bool:
        # Called before the thread follows, and again just before it would sleep. At that moment the leader
        # leaves and the outcome arrives.
        if this not in lead._followers.values():
            return not leader.is_alive()
        leave.set()
        leader.join(PATIENCE)
        return True

    this = _Waiting(is_settled)
    try:
        wait(lambda: lead.wait_for(this, PATIENCE))
    finally:
        leave.set()
        leader.join(PATIENCE)
        del lead._followers[other]
    return this, other


def test_a_follower_that_does_not_need_the_lead_passes_it_on() -> None:
    """The leader has offered it the lead. If it did not pass that on, the next one would sleep for a
    slice.
    """
    with TaskPool(1, context="fork") as pool:
        this, other = follow_and_leave(pool._engine.lead)
    assert other.condition.notified
    assert not this.condition.notified


class _SignalledLock:
    """A signal arrives when it has been acquired for the first time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._signals = [signal.SIGUSR1]
        self.release = self._lock.release

    def acquire(self, blocking: bool) -> bool:
        acquired = self._lock.acquire(blocking)
        if self._signals:
            signal.raise_signal(self._signals.pop())
        return acquired


def test_a_signal_handler_may_wait_while_its_thread_passes_the_barrier() -> None:
    """The handler released the lock of the barrier, and the thread tried to release it again."""
    values: list[int] = []
    with TaskPool(1, context="fork") as pool:
        pool._engine.lead._front_barrier._lock = _SignalledLock()  # type: ignore[assignment]

        def wait(_signum: int, _frame: object) -> None:
            values.append(pool.submit(abs, -3).result(PATIENCE))

        before = signal.signal(signal.SIGUSR1, wait)
        try:
            assert pool.submit(time.sleep, 0.1).result(PATIENCE) is None
        finally:
            signal.signal(signal.SIGUSR1, before)
    assert values == [3]


@needs_a_trace_that_raises
def test_an_interrupt_as_a_follower_leaves_does_not_keep_the_lead() -> None:
    """Otherwise nobody would fetch the results that other threads wait for."""
    with TaskPool(1, context="fork") as pool:
        front = pool._engine.lead._front
        for step in itertools.count():
            reached: list[bool] = []

            def wait(wait_for: Callable[[], object], step: int = step, reached: list[bool] = reached) -> None:
                reached.append(interrupt_at(step, wait_for, traced=("lead.py",)))

            follow_and_leave(pool._engine.lead, wait)
            was_kept = front.is_owned()
            front.unwind()
            assert not was_kept, f"at step {step}"
            if not reached[0]:
                break
        assert step > 20
