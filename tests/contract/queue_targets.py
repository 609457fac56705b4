"""What other processes run in the tests of queue, lock and counter.

Most tests need another process that does one thing at a time. A `Peer` is one: it runs the calls that the
test sends it, one after the other, and sends the results or exceptions back.
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

#: Objects that a peer keeps from one call to the next.
kept: dict[str, Any] = {}


class Peer:
    """Another process, started with the given start method, that serves calls until `stop`."""

    def __init__(self, start_method: str) -> None:
        context = resolve_context(start_method)
        # First start the resource tracker: a child that is forked without one would start its own.
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
        """Return or raise what `function` returns or raises in the peer."""
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
        """Whether the call that `begin` started still runs."""
        return not self._here.poll(0)

    def stop(self) -> None:
        self._here.send(None)
        self.process.join(PATIENCE)
        self.process.kill()
        self.process.join()
        self.process.close()
        self._here.close()


def serve(connection: Connection) -> None:
    """What the process of a `Peer` runs."""
    while (work := connection.recv()) is not None:
        function, args = work
        try:
            answer = True, function(*args)
        except BaseException as error:
            answer = False, error
        del function, args, work
        connection.send(answer)
        # Handles among the arguments must not live until the next call.
        del answer
    connection.close()


@contextmanager
def peer_of(start_method: str) -> Iterator[Peer]:
    peer = Peer(start_method)
    try:
        yield peer
    finally:
        peer.stop()


# --- one operation on an object that was sent along ---------------------------------------------------------


def do(thing: Any, method: str, *args: Any) -> Any:
    """Call a method of `thing`: a queue, a lock or a counter."""
    return getattr(thing, method)(*args)


def look(thing: Any, name: str) -> Any:
    """Read a property of `thing`."""
    return getattr(thing, name)


def nothing() -> None:
    """Do nothing: show that the peer answers."""


def keep(name: str, thing: Any) -> None:
    kept[name] = thing


def do_kept(name: str, method: str, *args: Any) -> Any:
    return getattr(kept[name], method)(*args)


def look_kept(name: str, attribute: str) -> Any:
    return getattr(kept[name], attribute)


def drop(name: str) -> None:
    del kept[name]


def refused(thing: Any, method: str, *args: Any) -> tuple[str, str, str]:
    """Make a call that must fail; return the error as text: its class, its cause's class and its message."""
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
    """Put an item that cannot be pickled; return the error and the size of the queue after that."""
    return refused(queue, "put", lambda: None)[0], queue.qsize()


def take_all(queue: BoundedQueue[Any]) -> list[Any]:
    return list(queue)


def answer(questions: BoundedQueue[int], answers: BoundedQueue[int]) -> None:
    """Answer each number with its square, until `questions` is shut down."""
    for number in questions:
        answers.put(number * number)


def put_and_die(queue: BoundedQueue[Any], item: Any, how: str) -> None:
    queue.put(item)
    if how == "exit":
        sys.exit(3)
    os.kill(os.getpid(), signal.SIGKILL)


def create_and_send(connection: Connection) -> None:
    """Create a queue with an item in it, send a handle, wait for permission to end, and return."""
    queue: BoundedQueue[str] = BoundedQueue()
    queue.put("from the creator")
    connection.send_bytes(pickle.dumps(queue))
    connection.recv_bytes()
    connection.close()


def pass_on(thing: Any, courier: BoundedQueue[Any]) -> None:
    """Pass a handle on that another process created."""
    courier.put(thing)


def put_in_delivered(courier: BoundedQueue[BoundedQueue[str]], item: str) -> None:
    with courier.get(timeout=PATIENCE) as queue:
        queue.put(item)


def change_array(queue: BoundedQueue[Any]) -> tuple[int, int, bool]:
    """Take an array and write to it, before and after the queue is closed in this process."""
    array = queue.get(timeout=PATIENCE)
    array += 1
    queue.close()
    array += 1
    return int(array[0]), int(array[-1]), bool(array.flags.writeable)


def squares(queue: BoundedQueue[Any], number: int) -> None:
    import numpy as np  # not at the top: the import takes as long as everything else that a child does

    for count in range(number):
        queue.put(np.full(20_000, count, "i8"))


def get_async_and_cancel(queue: BoundedQueue[int], others: BoundedQueue[int]) -> list[int]:
    """Cancel some waiting coroutines, then take all items. Puts into `others` when all coroutines wait."""
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
    """Stop this process (SIGSTOP) while it holds the lock; release the lock after it is continued."""
    lock.acquire()
    reached.put(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.release()


def add_many(counter: LockedCounter, number: int) -> None:
    for _ in range(number):
        counter.add()


def add_for_ever(counter: LockedCounter, mine: LockedCounter) -> None:
    """Add one to `counter`, then one to `mine`, again and again."""
    while True:
        counter.add()
        mine.add()


def double_inside(counter: LockedCounter, number: int) -> None:
    """Make compound updates, each of which adds two in two assignments."""
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
    """Die while this process holds one of the queue's own locks."""
    lock = getattr(queue._shared, side)
    assert lock.acquire(None)
    os.kill(os.getpid(), signal.SIGKILL)


def stop_inside_queue(queue: BoundedQueue[Any], side: str, reached: BoundedQueue[int]) -> None:
    """Stop this process while it holds one of the queue's own locks; release that after it is continued."""
    lock = getattr(queue._shared, side)
    assert lock.acquire(None)
    reached.put(os.getpid())
    os.kill(os.getpid(), signal.SIGSTOP)
    lock.unwind()


def guarded_increments(lock: Lock, plain: Any, number: int) -> None:
    """Read and write in two steps, which loses updates unless the lock works."""
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
