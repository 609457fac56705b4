"""Every operation wakes those who may be sleeping for it, so that they need not wait for the end of a slice.

Tickets stand for the sleepers: real ones would not show a missing wake-up, because they look five times a
second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpkit import BoundedQueue
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit._shm.locks.sleepers import Sleepers

Operation = Callable[[BoundedQueue[Any]], object]


@pytest.fixture(params=[0, 4], ids=["unbounded", "bounded"])
def queue(request: pytest.FixtureRequest) -> Iterator[BoundedQueue[Any]]:
    with BoundedQueue[Any](request.param) as queue:
        yield queue


def enter(sleepers: Sleepers, lock: RobustLock) -> None:
    """Take a ticket, as a process does that goes to sleep, under the lock of its side."""
    assert lock.acquire(None)
    sleepers.enter()
    lock.release()


def is_woken(sleepers: Sleepers) -> bool:
    """Whether there is a token for the sleeper; if so, take it."""
    return sleepers.sleep(time.monotonic())


PUTS: dict[str, Operation] = {
    "put": lambda queue: queue.put(1),
    "put big": lambda queue: queue.put(bytes(100_000)),
    "put_many": lambda queue: queue.put_many([object, object]),
    "put_many packed": lambda queue: queue.put_many([1, 2, 3, 4]),
    "put_many big": lambda queue: queue.put_many([bytes(100_000)]),
    "aput": lambda queue: asyncio.run(queue.aput(1)),
    "shutdown": lambda queue: queue.shutdown(),
}

GETS: dict[str, Operation] = {
    "get": lambda queue: queue.get(),
    "get_nowait": lambda queue: queue.get_nowait(),
    "get_many": lambda queue: queue.get_many(),
    "aget": lambda queue: asyncio.run(queue.aget()),
    "shutdown": lambda queue: queue.shutdown(),
    "shutdown at once": lambda queue: queue.shutdown(immediate=True),
}


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("put", PUTS.values(), ids=PUTS)
def test_a_put_wakes_a_sleeper_that_waits_for_an_item(
    queue: BoundedQueue[Any], put: Operation, is_first: bool
) -> None:
    if not is_first:
        # After the first operation, this process takes the fast path.
        queue.put(0)
        queue.get()
    file = queue._opened()
    enter(file.items, file.get_lock)
    put(queue)
    assert is_woken(file.items)


@pytest.mark.parametrize("is_first", [True, False], ids=["first", "later"])
@pytest.mark.parametrize("get", GETS.values(), ids=GETS)
def test_a_get_wakes_a_sleeper_that_waits_for_room(
    queue: BoundedQueue[Any], get: Operation, is_first: bool
) -> None:
    for number in range(2):
        queue.put(number)
    if not is_first:
        queue.get()
    file = queue._opened()
    enter(file.room, file.put_lock)
    get(queue)
    assert is_woken(file.room)


@pytest.mark.parametrize("finish", ["task_done", "shutdown"])
def test_finishing_the_last_item_wakes_a_sleeper_that_joins(queue: BoundedQueue[Any], finish: str) -> None:
    queue.put(1)
    file = queue._opened()
    enter(file.done, file.get_lock)
    if finish == "task_done":
        queue.get()
        assert not is_woken(file.done)
        queue.task_done()
    else:
        queue.shutdown(immediate=True)
    assert is_woken(file.done)
