"""What other processes run in the tests of queue, lock and counter.

Most tests need somebody in another process who does one thing at a time: a `Peer` runs what it is told to,
one call after the other, and sends the results or exceptions back.
"""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from typing import Any

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._platform.stdlib.contexts import resolve_context
from tests.helpers.waiting import PATIENCE, wait_until

#: What a peer keeps between two calls.
kept: dict[str, Any] = {}


class Peer:
    """Another process, started with one start method, that serves calls until `stop`."""

    def __init__(self, start_method: str) -> None:
        context = resolve_context(start_method)
        # A child forked before there is one would start its own.
        resource_tracker.ensure_running()
        self._here, there = context.Pipe()
        self.process = context.Process(target=serve, args=(there,), daemon=True)  # type: ignore[attr-defined]
        self.process.start()
        there.close()

    @property
    def pid(self) -> int:
        pid = self.process.pid
        assert isinstance(pid, int)
        return pid

    def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What `function` returns or raises there."""
        self.begin(function, *args)
        return self.end()

    def begin(self, function: Callable[..., Any], *args: Any) -> None:
        self._here.send((function, args))

    def end(self) -> Any:
        assert self._here.poll(PATIENCE), "no answer"
        fine, value = self._here.recv()
        if fine:
            return value
        raise value

    def busy(self) -> bool:
        """Whether the call that has begun goes on."""
        return not self._here.poll(0)

    def stop(self) -> None:
        self._here.send(None)
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.process.close()
        self._here.close()


def serve(connection: Connection) -> None:
    """The other end of a `Peer`."""
    while (work := connection.recv()) is not None:
        function, args = work
        try:
            answer = True, function(*args)
        except BaseException as error:
            answer = False, error
        del function, args, work
        connection.send(answer)
        # A handle that came with the call must not live until the next one.
        del answer
    connection.close()


@contextmanager
def peer_of(start_method: str) -> Iterator[Peer]:
    peer = Peer(start_method)
    try:
        yield peer
    finally:
        peer.stop()


# --- one call on something that came along ------------------------------------------------------------------


def do(thing: Any, method: str, *args: Any) -> Any:
    """Call a method of a queue, a lock or a counter."""
    return getattr(thing, method)(*args)


def look(thing: Any, name: str) -> Any:
    """Read a property."""
    return getattr(thing, name)


def nothing() -> None:
    """Show that the peer is there."""


def keep(name: str, thing: Any) -> None:
    kept[name] = thing


def do_kept(name: str, method: str, *args: Any) -> Any:
    return getattr(kept[name], method)(*args)


def look_kept(name: str, attribute: str) -> Any:
    return getattr(kept[name], attribute)


def drop(name: str) -> None:
    del kept[name]


def refused(thing: Any, method: str, *args: Any) -> tuple[str, str, str]:
    """The error of a call, as text: its class, its cause's class and its message."""
    try:
        getattr(thing, method)(*args)
    except Exception as error:
        return type(error).__name__, type(error.__cause__).__name__, str(error)
    raise AssertionError("nothing was raised")


# --- queues -------------------------------------------------------------------------------------------------


def put_range(queue: BoundedQueue[tuple[str, int]], who: str, number: int) -> None:
    for count in range(number):
        queue.put((who, count))


def put_lambda(queue: BoundedQueue[Any]) -> tuple[str, int]:
    """The error of an item that cannot be pickled, and the size of the queue after it."""
    return refused(queue, "put", lambda: None)[0], queue.qsize()


def take_all(queue: BoundedQueue[Any]) -> list[Any]:
    return list(queue)


def answer(questions: BoundedQueue[int], answers: BoundedQueue[int]) -> None:
    """The square of each number, until the questions are shut down."""
    for number in questions:
        answers.put(number * number)


def put_and_die(queue: BoundedQueue[Any], item: Any, how: str) -> None:
    queue.put(item)
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def create_and_send(connection: Connection) -> None:
    """Create a queue with an item in it, send a handle, wait for leave and go."""
    queue: BoundedQueue[str] = BoundedQueue()
    queue.put("from the creator")
    connection.send_bytes(pickle.dumps(queue))
    connection.recv_bytes()
    connection.close()


def pass_on(thing: Any, courier: BoundedQueue[Any]) -> None:
    """Send a handle on that somebody else has created."""
    courier.put(thing)


def put_in_delivered(courier: BoundedQueue[BoundedQueue[str]], item: str) -> None:
    with courier.get(timeout=PATIENCE) as queue:
        queue.put(item)


def change_array(queue: BoundedQueue[Any]) -> tuple[int, int, bool]:
    """Take an array and write to it, also after the queue is closed here."""
    array = queue.get(timeout=PATIENCE)
    array += 1
    queue.close()
    array += 1
    return int(array[0]), int(array[-1]), bool(array.flags.writeable)


def squares(queue: BoundedQueue[Any], number: int) -> None:
    import numpy as np  # not at the top: it takes as long as all else that a child does

    for count in range(number):
        queue.put(np.full(20_000, count, "i8"))


def get_async_and_cancel(queue: BoundedQueue[int], others: BoundedQueue[int]) -> list[int]:
    """Cancel some coroutines that wait, then take what comes; `others` says when everybody waits."""
    import asyncio

    async def main() -> list[int]:
        impatient = [asyncio.ensure_future(queue.aget()) for _ in range(5)]
        patient = [asyncio.ensure_future(queue.aget()) for _ in range(3)]
        await asyncio.sleep(0)
        for task in impatient:
            task.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        await others.aput(0)
        found = await asyncio.gather(*patient)
        found.extend([item async for item in queue])
        return sorted(found)

    found = asyncio.run(main())
    gc.collect()
    wait_until(lambda: not queue_threads(), "the threads of the queue have ended")
    return found


def queue_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("mpkit-queue")]


# --- locks and counters -------------------------------------------------------------------------------------


def acquire_and_die(lock: Lock, reached: BoundedQueue[int]) -> None:
    lock.acquire()
    reached.put(os.getpid())
    os.kill(os.getpid(), signal.SIGKILL)


def acquire_and_stop(lock: Lock, reached: BoundedQueue[int]) -> None:
    """Hold a lock, stopped; release it when allowed to go on."""
    lock.acquire()
    reached.put(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.release()


def add_many(counter: LockedCounter, number: int) -> None:
    for _ in range(number):
        counter.add()


def add_for_ever(counter: LockedCounter, mine: LockedCounter) -> None:
    """Add to both, to one's own second."""
    while True:
        counter.add()
        mine.add()


def double_inside(counter: LockedCounter, number: int) -> None:
    """Compound updates: each adds two in two assignments."""
    for _ in range(number):
        with counter as locked:
            before = locked.value
            locked.value = before + 1
            locked.value = before + 2


def die_inside_update(counter: LockedCounter, value: int) -> None:
    with counter as locked:
        locked.value = value
        os.kill(os.getpid(), signal.SIGKILL)


def stop_inside_update(counter: LockedCounter, reached: BoundedQueue[int]) -> None:
    with counter as locked:
        locked.value += 1
        reached.put(os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        locked.value += 1


def die_inside_queue(queue: BoundedQueue[Any], side: str) -> None:
    """Die with the queue's own lock in hand."""
    lock = getattr(queue._shared, side)
    assert lock.acquire(None)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_inside_queue(queue: BoundedQueue[Any], side: str, reached: BoundedQueue[int]) -> None:
    """Be stopped with the queue's own lock in hand, and give it back when allowed to go on."""
    lock = getattr(queue._shared, side)
    assert lock.acquire(None)
    reached.put(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.unwind()


def guarded_increments(lock: Lock, plain: Any, number: int) -> None:
    """What goes wrong without a lock: read, then write."""
    for _ in range(number):
        with lock:
            plain[0] = plain[0] + 1


def guarded_resets(lock: Lock, counter: LockedCounter, number: int) -> None:
    for _ in range(number):
        with lock:
            counter.reset(counter.value + 1)


def create_both(connection: Any) -> None:
    connection.send_bytes(pickle.dumps((Lock(), LockedCounter(5))))
    connection.recv_bytes()
