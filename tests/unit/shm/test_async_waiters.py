"""Coroutines that wait for a queue: which of them is told to try, and when."""

from __future__ import annotations

import asyncio
import os
import pickle
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from mpkit import BoundedQueue
from mpkit._shm.queues import async_waiters
from mpkit._shm.queues.put_side import PutSide
from tests.helpers.processes import forked
from tests.helpers.waiting import PATIENCE, wait_until


class Side:
    """One side of a queue as a watch sees it; the test sets its numbers."""

    def __init__(self) -> None:
        self.number = 0
        self.progress = 0
        self.passed_on = 0
        self.waited_for: list[int] = []
        self._changed = threading.Condition()
        self.watch = async_waiters._Watch(
            "watch", self._wait, lambda: self.progress, lambda: (self.number, 0), self._pass_on
        )

    def change(self, number: int) -> None:
        with self._changed:
            self.number, self.progress = number, self.progress + 1
            self._changed.notify_all()

    def _wait(self, seen: int, _deadline: float) -> bool:
        self.waited_for.append(seen)
        with self._changed:
            return self._changed.wait_for(lambda: self.progress != seen, 0.01)

    def _pass_on(self) -> None:
        self.passed_on += 1


@pytest.fixture
def side() -> Iterator[Side]:
    side = Side()
    yield side
    side.watch.stop(lambda: None)


async def settled() -> None:
    """Let the event loop run until every coroutine that was told has reacted (and any that should not)."""
    for _ in range(5):
        await asyncio.sleep(0.02)


def test_no_more_are_told_than_can_succeed(side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """All were, for each item: a thousand that wait cost 20 ms of computing for one item."""
    told: list[int] = []
    leave = side.watch._leave

    def leave_and_take(waiter: Any) -> bool:
        """It takes what there is before the thread can look again, though this one may lose its core here."""
        was_told = leave(waiter)
        side.number -= was_told
        return was_told

    async def wait(number: int) -> None:
        await side.watch.wait(0)
        told.append(number)

    monkeypatch.setattr(side.watch, "_leave", leave_and_take)
    # Whoever has been told tries, however late: no others are told in its place.
    monkeypatch.setattr(async_waiters, "_MOMENT_SECONDS", PATIENCE)

    async def program() -> None:
        tasks = [asyncio.create_task(wait(number)) for number in range(20)]
        await settled()
        assert told == []
        side.change(1)
        await asyncio.wait(tasks[:1], timeout=PATIENCE)
        await settled()
        assert told == [0]
        side.change(3)
        await asyncio.wait(tasks[1:4], timeout=PATIENCE)
        await settled()
        assert told == [0, 1, 2, 3], "they are told in the order in which they came"
        side.change(1000)
        await asyncio.wait(tasks, timeout=PATIENCE)
        assert told == list(range(20))

    asyncio.run(program())
    assert side.passed_on == 0


def test_a_coroutine_that_was_told_too_late_waits_for_the_next_progress(side: Side) -> None:
    """Another process was quicker. The thread must not look again and again for an item that is gone."""

    async def program() -> None:
        task = asyncio.create_task(side.watch.wait(0))
        await settled()
        side.change(0)
        gone = side.progress
        await asyncio.to_thread(wait_until, lambda: side.waited_for[-1:] == [gone], "it knows")
        side.change(1)
        await asyncio.wait_for(task, PATIENCE)

    asyncio.run(program())


def test_a_blocked_event_loop_does_not_hold_up_others(side: Side) -> None:
    """Its coroutine has been told, but never gets to try."""
    still = asyncio.new_event_loop()
    stuck = still.create_task(side.watch.wait(0))
    still.run_until_complete(asyncio.sleep(0))
    wait_until(lambda: len(side.watch._waiters) == 1, "it waits")

    async def program() -> None:
        task = asyncio.create_task(side.watch.wait(0))
        await settled()
        side.change(1)
        await asyncio.wait_for(task, PATIENCE)

    try:
        asyncio.run(program())
    finally:
        stuck.cancel()
        still.run_until_complete(asyncio.gather(stuck, return_exceptions=True))
        still.close()


def test_who_is_cancelled_when_it_has_been_told_lets_another_one_try(
    side: Side, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = async_waiters._finish

    async def program() -> None:
        first = asyncio.create_task(side.watch.wait(0))
        second = asyncio.create_task(side.watch.wait(0))
        await settled()

        def finish(future: asyncio.Future[None], error: BaseException | None) -> None:
            real(future, error)
            # In the next turn of the loop it would try.
            first.cancel()

        monkeypatch.setattr(async_waiters, "_finish", finish)
        side.change(1)
        await asyncio.wait_for(second, PATIENCE)
        assert first.cancelled()

    asyncio.run(program())
    assert side.passed_on, "nobody else who sleeps was told instead"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_coroutine_dropped_in_a_forked_child_does_not_wait_for_a_lock_of_the_parent(side: Side) -> None:
    """If the watching thread held the lock at the fork, a child would hang at its normal end."""
    waiting = side.watch.wait(0)
    telling, go_on = threading.Event(), threading.Event()

    def tell() -> None:
        with side.watch._condition:
            telling.set()
            go_on.wait(PATIENCE)

    def child() -> None:
        signal.alarm(round(PATIENCE))
        waiting.close()

    async def program() -> None:
        waiting.send(None)
        thread = threading.Thread(target=tell)
        thread.start()
        telling.wait(PATIENCE)
        try:
            assert forked(child) == 0
        finally:
            go_on.set()
            thread.join()
        waiting.close()

    asyncio.run(program())


def test_all_handles_and_event_loops_of_a_process_wait_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """If two loops that begin at once had a watch each, closing the queue would end only one of them."""
    with BoundedQueue[int]() as queue:
        of_another_thread: list[object] = []
        real = async_waiters.AsyncWaiters

        def make(file: Any, *sides: Any) -> async_waiters.AsyncWaiters:
            monkeypatch.undo()
            of_another_thread.append(file.async_waiters())
            return real(file, *sides)

        monkeypatch.setattr(async_waiters, "AsyncWaiters", make)
        waiters = queue._opened().async_waiters()
        assert [waiters] == of_another_thread
        assert pickle.loads(pickle.dumps(queue))._opened().async_waiters() is waiters


@pytest.mark.parametrize("takers", [1, 50])
def test_all_items_arrive_whoever_waits(takers: int) -> None:
    found: list[int] = []

    async def take(queue: BoundedQueue[int]) -> None:
        found.extend([item async for item in queue])

    async def program(queue: BoundedQueue[Any]) -> None:
        tasks = [asyncio.create_task(take(queue)) for _ in range(takers)]
        await asyncio.sleep(0)
        for number in range(200):
            await queue.aput(number)
            await asyncio.sleep(0)
        queue.shutdown()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)

    with BoundedQueue[int](10) as queue:
        asyncio.run(program(queue))
    assert sorted(found) == list(range(200))


def test_all_that_wait_for_room_get_it() -> None:
    async def program(queue: BoundedQueue[int]) -> list[int]:
        puts = [asyncio.create_task(queue.aput(number)) for number in range(50)]
        found = [await queue.aget() for _ in puts]
        await asyncio.wait_for(asyncio.gather(*puts), PATIENCE)
        return found

    with BoundedQueue[int](1) as queue:
        assert sorted(asyncio.run(program(queue))) == list(range(50))


def test_not_all_try_for_each_bit_of_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """If all were told each time (with `max_bytes`), a thousand coroutines would try half a million times."""
    number = 60
    tries: list[None] = []
    put_now = PutSide.put_now

    def counted(side: PutSide, data: bytes, flag: int) -> bool | None:
        tries.append(None)
        return put_now(side, data, flag)

    monkeypatch.setattr(PutSide, "put_now", counted)

    async def program(queue: BoundedQueue[bytes]) -> None:
        puts = [asyncio.create_task(queue.aput(bytes(100))) for _ in range(number)]
        for _ in puts:
            await queue.aget()
        await asyncio.wait_for(asyncio.gather(*puts), PATIENCE)

    with BoundedQueue[bytes](max_bytes=150) as queue:
        asyncio.run(program(queue))
    # Each may try once at first, once with success, and a few times in vain.
    assert len(tries) < 10 * number


def test_the_only_place_is_kept_for_the_coroutine_that_is_told_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """If waiting threads were told of it, too, they would be quicker, and hardly leave a place to
    coroutines.
    """
    passed_on: list[None] = []
    monkeypatch.setattr(PutSide, "pass_on", lambda _side: passed_on.append(None))

    async def program(queue: BoundedQueue[int]) -> None:
        for number in range(5):
            put = asyncio.create_task(queue.aput(number))
            await asyncio.sleep(0)
            wait_until(lambda: queue._opened().room.waiting() == 1, "the thread sleeps for it")
            queue.get()
            await asyncio.wait_for(put, PATIENCE)

    with BoundedQueue[int](1) as queue:
        queue.put(0)
        asyncio.run(program(queue))
    assert not passed_on


def test_a_small_item_passes_a_big_one_that_does_not_fit() -> None:
    async def program(queue: BoundedQueue[bytes]) -> None:
        queue.put(bytes(400))
        queue.put(bytes(400))
        bigs = [asyncio.create_task(queue.aput(bytes(900))) for _ in range(3)]
        await asyncio.sleep(0)
        small = asyncio.create_task(queue.aput(bytes(300)))
        await asyncio.sleep(0)
        queue.get()
        await asyncio.wait_for(small, PATIENCE)
        for _ in range(2 + len(bigs)):
            await queue.aget()
        await asyncio.wait_for(asyncio.gather(*bigs), PATIENCE)

    with BoundedQueue[bytes](max_bytes=1000) as queue:
        asyncio.run(program(queue))
