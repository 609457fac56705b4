"""Workers that leave: when they are replaced, told to end, and killed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import MagicMock, Mock

import pytest

from mpkit._platform.threads.deadlines import NEVER
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._engine.leavers import Leavers
from mpkit.pool._protocol.channel import LEAVE_RECORD, LOW

_LEFT_AT = 1000.0


class _Worker(Mock):
    """Imitates a lane: it can be killed, and is never asked whether it lives."""


def a_worker(*, left_at: float = 0.0, greeted: bool = True) -> Any:
    return _Worker(
        left_at=left_at,
        leave_by=0.0,
        sent={},
        told_to_leave=False,
        told_to_end=False,
        greeted=greeted,
        leaving=bool(left_at),
        words=[1] * (LOW + 1),
    )


def leavers_of(*workers: Any, processes: int = 1, grace_period: float = 1.0) -> Any:
    """A `Leavers`, of a pool of which everything but the workers is an imitation."""
    parts: dict[str, Any] = {
        name: MagicMock() for name in ("board", "dispatcher", "collector", "crew", "programs")
    }
    parts["dispatcher"] = SimpleNamespace(
        lanes=dict(enumerate(workers)), lock=InterruptibleLock(), give_to_others=Mock()
    )
    parts["crew"].is_initializing = lambda worker: worker.words[0] == 0
    options = SimpleNamespace(processes=processes, grace_period=grace_period, name="a pool")
    return Leavers(cast("Any", options), **parts)


def killed(*workers: Any) -> list[int]:
    return [worker.kill.call_count for worker in workers]


def test_a_worker_that_has_left_is_replaced_after_a_second() -> None:
    """Not earlier, because its exit handlers may release something that only one worker may have."""
    leavers = leavers_of(a_worker(left_at=_LEFT_AT), a_worker())
    assert leavers.staying(_LEFT_AT + 0.9) == 0
    assert leavers.look_after(_LEFT_AT + 0.9) == _LEFT_AT + 1.0
    assert leavers.staying(_LEFT_AT + 1.0) == 1


def test_others_get_what_a_worker_that_has_left_has_not_begun() -> None:
    left, other = a_worker(left_at=_LEFT_AT), a_worker()
    left.sent[1] = other.sent[2] = object()
    leavers = leavers_of(left, other)
    leavers.look_after(_LEFT_AT)
    given = leavers._dispatcher.give_to_others
    assert [call.args[0] for call in given.call_args_list] == [left]
    leavers._collector.under_lock.assert_called_once()


@pytest.mark.parametrize("grace_period, seconds", [(1.0, 60.0), (20.0, 200.0)])
def test_a_worker_that_has_left_is_killed_after_a_minute_or_ten_grace_periods(
    grace_period: float, seconds: float
) -> None:
    left, other = a_worker(left_at=_LEFT_AT), a_worker()
    leavers = leavers_of(left, other, grace_period=grace_period)
    end = _LEFT_AT + seconds
    assert leavers.look_after(end - 0.1) == end
    assert killed(left, other) == [0, 0]
    leavers.look_after(end)
    assert leavers.look_after(end + 0.1) == NEVER
    assert killed(left, other) == [1, 0]
    assert "was killed" in leavers._collector.log.call_args.args[1]


@pytest.mark.parametrize("grace_period, seconds", [(0.5, 10.0), (2.0, 20.0)])
def test_if_too_many_have_left_the_first_ones_are_killed_earlier(grace_period: float, seconds: float) -> None:
    """So there are never more than twice as many workers as the pool should have."""
    third, first, second = (a_worker(left_at=_LEFT_AT + place) for place in (2, 0, 1))
    leavers = leavers_of(third, first, second, processes=2, grace_period=grace_period)
    assert leavers.look_after(_LEFT_AT + 5.0) == _LEFT_AT + seconds
    assert leavers.staying(_LEFT_AT + 5.0) == 3
    leavers.look_after(_LEFT_AT + seconds)
    assert killed(first, second, third) == [1, 0, 0]
    # Once it has ended, the others may stay for a minute.
    del leavers._dispatcher.lanes[1]
    assert leavers.staying(_LEFT_AT + seconds + 5.0) == 2
    leavers.look_after(_LEFT_AT + seconds + 5.0)
    assert killed(first, second, third) == [1, 0, 0]


@pytest.mark.parametrize("grace_period, seconds", [(1.0, 10.0), (2.0, 20.0)])
def test_the_workers_of_a_closed_pool_have_ten_seconds_or_ten_grace_periods_to_leave(
    grace_period: float, seconds: float
) -> None:
    worker, gone = a_worker(), a_worker(left_at=_LEFT_AT - 5.0)
    leavers = leavers_of(worker, gone, grace_period=grace_period)
    end = _LEFT_AT + seconds
    assert leavers.send_home(_LEFT_AT) == end
    assert leavers.send_home(end - 0.1) == end
    for each in (worker, gone):
        # It is told once, and woken for it.
        each.channel.inbox.try_put.assert_called_once_with(LEAVE_RECORD)
        each.wake.assert_called_once_with()
        assert each.leaving
    leavers._board.discard.assert_called_once_with()
    assert killed(worker, gone) == [0, 0]
    assert leavers.send_home(end) == NEVER
    leavers.send_home(end + 0.1)
    assert killed(worker, gone) == [1, 1]


def test_each_worker_of_a_closed_pool_has_its_own_deadline() -> None:
    """A worker that was just being started when the pool was closed comes later."""
    first, second = a_worker(), a_worker()
    leavers = leavers_of(first)
    leavers.send_home(_LEFT_AT)
    leavers._dispatcher.lanes[1] = second
    assert leavers.send_home(_LEFT_AT + 4.0) == _LEFT_AT + 10.0
    assert leavers.send_home(_LEFT_AT + 10.0) == _LEFT_AT + 14.0
    assert killed(first, second) == [1, 0]


def test_a_closed_pool_that_is_terminated_does_not_wait_for_longer_than_a_grace_period() -> None:
    worker = a_worker()
    leavers = leavers_of(worker, grace_period=1.0)
    leavers.send_home(_LEFT_AT)
    assert leavers.end_all(_LEFT_AT + 2.0) == _LEFT_AT + 3.0
    worker.terminate.assert_called_once_with()
    leavers.end_all(_LEFT_AT + 3.0)
    assert killed(worker) == [1]


def test_a_worker_that_is_only_starting_when_its_pool_is_closed_is_killed() -> None:
    """Nobody needs it. But an initializer that is running may finish."""
    ready, starting, initializing = a_worker(), a_worker(greeted=False), a_worker(greeted=False)
    initializing.words[0] = 0
    leavers_of(ready, starting, initializing).send_home(_LEFT_AT)
    assert [each.process.kill.call_count for each in (ready, starting, initializing)] == [0, 1, 0]


def test_the_workers_of_a_terminated_pool_have_one_grace_period_to_end() -> None:
    worker, gone = a_worker(), a_worker(left_at=_LEFT_AT - 5.0)
    leavers = leavers_of(worker, gone, grace_period=7.0)
    end = _LEFT_AT + 7.0
    assert leavers.end_all(_LEFT_AT) == end
    assert leavers.end_all(end - 0.1) == end
    for each in (worker, gone):
        each.terminate.assert_called_once_with()
        # Needed if this process may not send it signals.
        each.channel.inbox.try_put.assert_called_once_with(LEAVE_RECORD)
    # The pool is not over before the programs that their tasks have started have ended.
    followed = [call.args[0] for call in leavers._programs.follow.call_args_list]
    assert followed == [worker.terminate.return_value, gone.terminate.return_value]
    assert killed(worker, gone) == [0, 0]
    assert leavers.end_all(end) == NEVER
    leavers.end_all(end + 0.1)
    assert killed(worker, gone) == [1, 1]
    # What earlier tasks have left there is spared.
    worker.kill.assert_called_with(spare_earlier=True)
