"""Every call that waits sleeps meanwhile: it looks a few times a second, however long it takes."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm.locks.robust_lock import RobustLock
from mpkit._shm.queues.async_waiters import AsyncWaiters
from mpkit.errors import MpkitError
from tests.helpers.waiting import PATIENCE

#: How many seconds the waiting calls are watched: several slices.
WATCHED = 0.7
#: How many looks one of them may take in that time: twice the number for five slices of three looks each. A
#: call that never sleeps takes tens of thousands.
MOST_LOOKS = 30


@contextlib.contextmanager
def empty_queue() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int]() as queue:
        yield queue.get, lambda: queue.put(1)


@contextlib.contextmanager
def queue_that_has_been_used() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int]() as queue:
        for number in range(5):
            queue.put(number)
            queue.get()
        yield lambda: queue.get_many(3), lambda: queue.put(1)


@contextlib.contextmanager
def full_queue() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int](maxsize=1) as queue:
        queue.put(0)
        yield lambda: queue.put(1), queue.get


@contextlib.contextmanager
def unfinished_queue() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int]() as queue:
        queue.put(0)
        yield queue.join, queue.task_done


@contextlib.contextmanager
def coroutine_of_an_empty_queue() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int]() as queue:
        yield lambda: asyncio.run(queue.aget()), lambda: queue.put(1)


@contextlib.contextmanager
def coroutine_of_a_full_queue() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with BoundedQueue[int](maxsize=1) as queue:
        queue.put(0)
        yield lambda: asyncio.run(queue.aput(1)), queue.get


@contextlib.contextmanager
def lock_of_another_thread() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with contextlib.closing(Lock()) as lock:
        lock.acquire()

        def take() -> None:
            lock.acquire()
            lock.release()

        yield take, lock.release


@contextlib.contextmanager
def counter_that_stands_still() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    with contextlib.closing(LockedCounter()) as counter:
        yield lambda: counter.wait_for(1), counter.add


@contextlib.contextmanager
def coroutines_and_a_token_too_many() -> Iterator[tuple[Callable[[], Any], Callable[[], Any]]]:
    """Two coroutines wait for room (one as if in another process). There is also the ticket of a process that
    was killed, and a token that nobody took.
    """
    with BoundedQueue[bytes](max_bytes=1000) as queue:
        queue.put(bytes(900))
        opened = queue._opened()
        room = opened.room
        other = AsyncWaiters(opened, opened.puts, opened.gets)

        def wait_with_two() -> None:
            async def both() -> None:
                seen = opened.puts.progress()
                puts = asyncio.gather(queue.aput(bytes(300)), other.room(seen, 300))
                while room.waiting() < 2:  # noqa: ASYNC110  a word in shared memory has no event
                    await asyncio.sleep(0.001)
                room.words[room.slept_at] += 1
                room.post(1)
                await puts

            asyncio.run(both())

        yield wait_with_two, queue.get


#: The situations in which a call waits. All are watched at the same time.
SITUATIONS: list[
    Callable[[], contextlib.AbstractContextManager[tuple[Callable[[], Any], Callable[[], Any]]]]
] = [
    empty_queue,
    queue_that_has_been_used,
    full_queue,
    unfinished_queue,
    coroutine_of_an_empty_queue,
    coroutine_of_a_full_queue,
    coroutines_and_a_token_too_many,
    lock_of_another_thread,
    counter_that_stands_still,
]


def test_calls_that_wait_sleep(monkeypatch: pytest.MonkeyPatch) -> None:
    # For each object (by its memory), how many looks each thread has taken.
    looks: defaultdict[int, Counter[str]] = defaultdict(Counter)
    real = RobustLock.acquire

    def acquire(self: RobustLock, deadline: float | None = None) -> bool:
        looks[id(self.words.obj)][threading.current_thread().name] += 1
        return real(self, deadline)

    failed: dict[str, MpkitError] = {}

    def run(wait: Callable[[], Any]) -> None:
        try:
            wait()
        except MpkitError as error:
            failed[threading.current_thread().name] = error

    with contextlib.ExitStack() as stack:
        made = {situation.__name__: stack.enter_context(situation()) for situation in SITUATIONS}
        threads = {
            name: threading.Thread(target=run, args=(wait,), name=name, daemon=True)
            for name, (wait, _) in made.items()
        }
        for thread in threads.values():
            thread.start()
        # This sleep waits for no event: it is the time in which looks are counted, the first ones included.
        monkeypatch.setattr(RobustLock, "acquire", acquire)
        began = time.monotonic()
        time.sleep(WATCHED)
        seen, lasted = [counts.copy() for counts in list(looks.values())], time.monotonic() - began
        gave_up = [name for name, thread in threads.items() if not thread.is_alive()]
        for name, (_, release) in made.items():
            if name not in gave_up:
                release()
        for thread in threads.values():
            thread.join(PATIENCE)
        assert not gave_up, failed
        assert not any(thread.is_alive() for thread in threads.values())
        assert not failed
    # On a busy machine the time may have been longer, and the limit is higher accordingly.
    assert [counts for counts in seen if sum(counts.values()) > MOST_LOOKS * lasted / WATCHED] == []
    assert len(seen) > 1, "no looks were counted"
