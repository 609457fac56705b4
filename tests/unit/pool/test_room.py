"""The room for tasks that wait (`max_pending`): whoever came first goes first."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mpkit._platform import seam
from mpkit.pool._room import Room
from tests.helpers.waiting import PATIENCE, wait_until

#: Of a thread that came before all others.
EARLIER = -1


@pytest.fixture
def dispatcher() -> Any:
    return SimpleNamespace(lock=seam.InterruptibleLock(), ledger=SimpleNamespace(queued=0), on_room=None)


def test_whoever_came_first_goes_first(dispatcher: Any) -> None:
    room = Room(dispatcher, 1)
    room.waiting.append(EARLIER)
    looks: list[None] = []

    def wait() -> None:
        with dispatcher.lock:
            room.wait(lambda: looks.append(None))

    def has_looked() -> bool:
        with dispatcher.lock:
            room.notify()
        return len(looks) >= 3 or not waiter.is_alive()

    waiter = threading.Thread(target=wait)
    waiter.start()
    wait_until(has_looked, "it has looked three times, or gone")
    assert waiter.is_alive(), "there is room, and somebody who has waited for longer"
    with dispatcher.lock:
        room.waiting.remove(EARLIER)
        room.notify()
    waiter.join(PATIENCE)
    assert not waiter.is_alive()
    assert not room.waiting


def test_whoever_comes_now_waits_behind_those_who_wait(dispatcher: Any) -> None:
    room = Room(dispatcher, 2)
    assert not room.is_short()
    room.waiting.append(EARLIER)
    assert room.is_short()
    room.waiting.clear()
    dispatcher.ledger.queued = 2
    assert room.is_short()
