"""Tickets and tokens: as long as nobody dies, tokens + (slept - posted) is the number of sleepers."""

from __future__ import annotations

import mmap
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import TypeVar, cast

import pytest

from mpkit._shm.locks import sleepers as sleepers_module
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit._shm.locks.sleepers import FIRST_TICKET, Sleepers, Ticket, Waker
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore
from tests.helpers.waiting import PATIENCE
from tests.unit.shm.others import Call, permits

R = TypeVar("R")

SLEPT, POSTED = 0, 8


@pytest.fixture
def group() -> Iterator[Sleepers]:
    words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("B").cast("Q")
    words[SLEPT] = words[POSTED] = FIRST_TICKET
    tokens = Semaphore.create(0, MAX_VALUE, kind="test")
    yield Sleepers(words, slept_at=SLEPT, posted_at=POSTED, tokens=tokens)
    tokens.close()


def tokens(group: Sleepers) -> int:
    return permits(group.tokens)


def test_without_sleepers_no_token_is_due(group: Sleepers) -> None:
    assert group.waiting() == 0
    assert group.due(5) == 0
    assert group.words[POSTED] == FIRST_TICKET


def test_each_sleeper_is_promised_one_token(group: Sleepers) -> None:
    for _ in range(3):
        group.enter()
    assert group.waiting() == 3
    assert group.due(2) == 2
    group.post(2)
    assert tokens(group) == 2
    assert group.due(1 << 30) == 1
    group.post(1)
    assert group.due(1) == 0
    for _ in range(3):
        assert group.sleep(time.monotonic() + PATIENCE)
    assert (tokens(group), group.waiting()) == (0, 0)


def test_a_sleeper_is_woken_by_the_token(group: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sleepers_module, "SLICE_SECONDS", PATIENCE)
    group.enter()
    call = Call(lambda: group.sleep(None))
    group.post(group.due(1))
    call.join()
    assert call.value is True


def test_a_slice_and_a_deadline_end_a_sleep(group: Sleepers, monkeypatch: pytest.MonkeyPatch) -> None:
    assert group.sleep(time.monotonic()) is False
    monkeypatch.setattr(sleepers_module, "SLICE_SECONDS", 0.001)
    assert group.sleep(None) is False
    assert group.sleep(time.monotonic() + PATIENCE) is False


def test_no_token_is_due_for_a_ticket_that_was_handed_back(group: Sleepers) -> None:
    group.enter()
    group.enter()
    group.leave()
    assert group.due(5) == 1


def test_a_token_that_came_too_late_stays_for_others(group: Sleepers) -> None:
    group.enter()
    group.post(group.due(1))
    group.leave()  # it found what it waited for without having been woken
    assert tokens(group) + group.words[SLEPT] - group.words[POSTED] == 0
    group.enter()
    assert group.sleep(time.monotonic()), "the surplus token does not wake the next sleeper"
    assert (tokens(group), group.waiting()) == (0, 0)


def test_a_token_that_a_dead_waker_promised_is_noticed_after_a_slice(group: Sleepers) -> None:
    group.enter()
    assert group.due(1) == 1  # and killed before the token
    assert not group.sleep(time.monotonic())
    assert group.due(1) == 0, "a second token was promised"
    group.renew()
    assert group.due(1) == 1
    group.post(1)
    assert group.sleep(time.monotonic())


def test_leaving_after_a_slice_leaves_no_deficit(group: Sleepers) -> None:
    group.enter()
    group.due(1)
    group.leave(expired=True)
    assert group.words[SLEPT] == group.words[POSTED]
    group.enter()
    assert group.due(1) == 1


def test_nothing_is_renewed_while_a_token_or_a_promise_is_on_its_way(group: Sleepers) -> None:
    group.enter()
    group.renew()
    assert group.waiting() == 1
    group.post(group.due(1))
    group.renew()
    assert group.waiting() == 0


def test_a_semaphore_full_of_tokens_is_no_error(group: Sleepers) -> None:
    for _ in range(MAX_VALUE):
        group.tokens.release()
    group.enter()
    group.post(group.due(1))
    assert group.sleep(time.monotonic())


class _Free:
    """A lock that is always free."""

    def run(self, _deadline: float | None, function: Callable[..., R], *args: object) -> R:
        return function(*args)


def test_sleepers_that_a_wake_up_leaves_asleep_are_not_taken_for_awake(group: Sleepers) -> None:
    """A putter that assumed that all are awake would wake nobody any more, until a slice is over."""
    waker = Waker(group, cast("RobustLock", _Free()))
    for _ in range(3):
        group.enter()
    assert waker.wake(1) == -1, "two more sleep"
    assert waker.wake(2) == group.words[SLEPT], "all have been promised a token"


def test_a_new_ticket_is_for_a_look_before_the_first_sleep(group: Sleepers) -> None:
    ticket = Ticket(group)
    ticket.take()
    assert group.waiting() == 1
    group.post(group.due(1))
    assert not ticket.sleep(None), "nobody wakes it for what came before the ticket"
    ticket.take()
    assert group.words[SLEPT] == FIRST_TICKET + 1, "it has one already"
    assert ticket.sleep(None)
    assert (ticket.woken, ticket.expired, tokens(group)) == (True, False, 0)
    ticket.give_up(cast("RobustLock", _Free()))
    assert group.waiting() == 0, "the token has used the ticket up"


def test_a_ticket_is_handed_back_only_once(group: Sleepers) -> None:
    ticket = Ticket(group)
    ticket.take()
    ticket.hand_back()
    ticket.give_up(cast("RobustLock", _Free()))
    assert group.words[SLEPT] == FIRST_TICKET
    ticket.take()
    ticket.give_up(cast("RobustLock", _Free()))
    assert group.words[SLEPT] == FIRST_TICKET


def test_a_ticket_whose_token_never_came_is_renewed_and_looks_once_more(group: Sleepers) -> None:
    ticket = Ticket(group)
    ticket.take()
    assert not ticket.sleep(time.monotonic())
    assert group.due(1) == 1  # and killed before the token
    assert not ticket.sleep(time.monotonic())
    assert ticket.expired
    ticket.take()
    assert group.due(1) == 1, "the next waker knows of it"
    group.post(1)
    assert not ticket.sleep(None), "it looks first"
    assert ticket.sleep(None)


class _TakenByAStoppedProcess:
    """A lock that cannot be acquired before the deadline."""

    def __init__(self) -> None:
        self.tried = 0

    def run(self, deadline: float | None, _function: Callable[[], object]) -> None:
        assert deadline is not None, "it waits for ever"
        assert deadline <= time.monotonic() + 1.0, "it does not look in between"
        self.tried += 1


@pytest.mark.parametrize("timeout", [None, PATIENCE])
def test_the_condition_is_noticed_even_if_the_lock_cannot_be_acquired(
    group: Sleepers, timeout: float | None
) -> None:
    lock = _TakenByAStoppedProcess()
    deadline = None if timeout is None else time.monotonic() + timeout
    assert group.wait_until(cast("RobustLock", lock), lambda: lock.tried > 2, deadline)


def test_a_condition_that_is_true_by_the_deadline_is_noticed(
    group: Sleepers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even if the whole time was spent waiting for the lock, it must look once more before it gives up."""
    now = [5.0]
    monkeypatch.setattr(sleepers_module, "CLOCK", SimpleNamespace(monotonic=lambda: now[0]))
    lock = _TakenByAStoppedProcess()

    def run(deadline: float | None, _function: Callable[[], object]) -> None:
        assert deadline is not None
        now[0] = deadline
        lock.tried += 1

    monkeypatch.setattr(lock, "run", run)
    assert group.wait_until(cast("RobustLock", lock), lambda: lock.tried > 0, 5.01)
    assert not group.wait_until(cast("RobustLock", lock), lambda: False, 7.0)
