"""The room for pending tasks (`max_pending`): threads get it in the order in which they came."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.pool._engine import room as _room
from mpkit.pool._engine.ledger import Task
from mpkit.pool._engine.room import Place, Room
from tests.helpers.waiting import PATIENCE, wait_until

TASK, EARLIER = cast("list[Task]", [object(), object()])


@pytest.fixture
def dispatcher() -> Any:
    return SimpleNamespace(lock=InterruptibleLock(), ledger=SimpleNamespace(queued=0), on_room=None)


def place_of_another(dispatcher: Any) -> Place:
    return Place(-1, threading.Condition(dispatcher.lock.raw))


def all_waiting(number: int, wait: Callable[[], None], room: Room, dispatcher: Any) -> list[threading.Thread]:
    """Threads that call `wait`, once all of them wait for room."""
    waiters = [threading.Thread(target=wait, daemon=True) for _ in range(number)]
    for waiter in waiters:
        waiter.start()

    def all_wait() -> bool:
        with dispatcher.lock:
            return len(room.waiting) == number

    wait_until(all_wait, "all of them wait")
    return waiters


def test_the_thread_that_came_first_goes_first(dispatcher: Any) -> None:
    room = Room(dispatcher, 1)
    room.waiting[EARLIER] = place_of_another(dispatcher)
    looks: list[None] = []

    def wait() -> None:
        with dispatcher.lock:
            room.wait(TASK, lambda: looks.append(None))

    def has_looked() -> bool:
        with dispatcher.lock:
            room.notify_all()
        return len(looks) >= 3 or not waiter.is_alive()

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(has_looked, "it has looked three times, or ended")
    assert waiter.is_alive(), "it took the room although another one has waited for longer"
    with dispatcher.lock:
        room.leave(EARLIER)
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert not room.waiting


def test_a_new_thread_queues_behind_those_that_wait(dispatcher: Any) -> None:
    room = Room(dispatcher, 2)
    assert not room.is_short()
    room.waiting[EARLIER] = place_of_another(dispatcher)
    assert room.is_short()
    room.waiting.clear()
    dispatcher.ledger.queued = 2
    assert room.is_short()


def test_only_the_first_of_many_waiting_threads_is_woken(
    dispatcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If all of them looked each time, a thousand threads would cost a thousand wake-ups for each task."""
    monkeypatch.setattr(_room, "_SLICE_SECONDS", 10 * PATIENCE)
    room = Room(dispatcher, 1)
    dispatcher.ledger.queued = 1
    looks: list[None] = []

    def wait() -> None:
        with dispatcher.lock:
            room.wait(cast("Task", object()), lambda: looks.append(None))
            # The task that it submits takes the room again.
            dispatcher.ledger.queued += 1

    waiters = all_waiting(20, wait, room, dispatcher)
    for left in reversed(range(20)):
        with dispatcher.lock:
            dispatcher.ledger.queued -= 1
            room.notify()

        def has_gone(left: int = left) -> bool:
            with dispatcher.lock:
                return len(room.waiting) == left and dispatcher.ledger.queued == 1

        wait_until(has_gone, "the next one has gone")
    for waiter in waiters:
        waiter.join(PATIENCE)
    # Each wakes up for its own room, and perhaps once more when the one before it leaves.
    assert len(looks) <= 2 * len(waiters)


def test_room_for_two_is_told_to_the_second_one_by_the_first(
    dispatcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first one is notified. If it did not pass that on, the second would sleep on."""
    monkeypatch.setattr(_room, "_SLICE_SECONDS", 10 * PATIENCE)
    room = Room(dispatcher, 2)
    dispatcher.ledger.queued = 2

    def wait() -> None:
        with dispatcher.lock:
            room.wait(cast("Task", object()), lambda: None)

    waiters = all_waiting(2, wait, room, dispatcher)
    with dispatcher.lock:
        dispatcher.ledger.queued = 0
        room.notify()
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert not room.waiting


def test_a_signal_handler_that_waits_while_its_thread_waits(dispatcher: Any) -> None:
    """The handler waits in the place of its thread. If it gives up, the thread must keep that place."""
    room = Room(dispatcher, 1)
    dispatcher.ledger.queued = 1
    left: list[list[Task]] = []

    def wait() -> None:
        def check() -> None:
            if not left:
                with pytest.raises(ZeroDivisionError):
                    room.wait(TASK, lambda: 1 // 0)
                room.leave(TASK)
                room.leave(TASK)
                left.append(list(room.waiting))

        with dispatcher.lock:
            room.wait(EARLIER, check)

    def has_gone() -> bool:
        with dispatcher.lock:
            room.notify_all()
        return not waiter.is_alive()

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(lambda: has_gone() or left, "the handler has run")
    assert left == [[EARLIER]]
    assert waiter.is_alive()
    dispatcher.ledger.queued = 0
    wait_until(has_gone, "it has gone")
    assert not room.waiting


def test_all_waiting_threads_check_whether_the_pool_has_ended(
    dispatcher: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There will never be room for them, so nothing else would wake them."""
    monkeypatch.setattr(_room, "_SLICE_SECONDS", 10 * PATIENCE)
    room = Room(dispatcher, 1)
    dispatcher.ledger.queued = 1
    refused: list[Task] = []

    def wait() -> None:
        task = cast("Task", object())
        with dispatcher.lock:
            try:
                room.wait(task, lambda: 1 // 0)
            except ZeroDivisionError:
                room.leave(task)
                refused.append(task)

    waiters = all_waiting(3, wait, room, dispatcher)
    with dispatcher.lock:
        room.notify_all()
    for waiter in waiters:
        waiter.join(PATIENCE)
    assert len(refused) == 3
    assert not room.waiting
