"""The interfaces that an adapter of a contender has to implement."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from typing import Any, Protocol


@dataclass(frozen=True)
class Room:
    """What a queue must hold.

    Attributes:
        items: The bound on the number of items; 0 for none.
        item_bytes: The approximate size of an item, for contenders that need to know it beforehand.
    """

    items: int = 0
    item_bytes: int = 64

    @property
    def ring_bytes(self) -> int:
        """A size with ample room for `items` items; at least the default of faster-fifo."""
        if not self.items:
            return 4_000_000
        return max(self.items * (self.item_bytes + 4096), 1_000_000)


class QueueEnds:
    """An open queue, which is passed to processes as an argument. Suits any queue with `put` and `get`."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def putter(self) -> Callable[[Any], object]:
        """Return a function that puts one item. Called once in each process that puts."""
        put: Callable[[Any], object] = self.queue.put
        return put

    def getter(self) -> Callable[[], Any]:
        """Return a function that waits for one item. Called once in each process that gets."""
        get: Callable[[], Any] = self.queue.get
        return get

    def many_putter(self) -> Callable[[Sequence[Any]], object]:
        """Return a function that puts a batch; item by item, if the contender has no batches."""
        put = self.putter()

        def put_each(items: Sequence[Any]) -> None:
            for item in items:
                put(item)

        return put_each

    def many_getter(self, limit: int) -> Callable[[], Sequence[Any]]:
        """Return a function that waits for at least one item and takes up to `limit`."""
        get = self.getter()

        def get_one() -> Sequence[Any]:
            return (get(),)

        _ = limit
        return get_one

    def finish(self) -> None:
        """Make sure that all items arrive. Called at the end of each process that puts."""

    def close(self) -> None:
        """Close the queue. Called in the process that opened it, after all others have ended."""


class QueuePeer(Protocol):
    """A kind of queue."""

    name: str
    #: How many processes may put at most.
    putters: int
    #: Throughput workloads divide the number of items by this: a slow contender must not take minutes.
    slowness: int

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        """Make one."""
        ...


class CounterPeer(Protocol):
    """A number that several processes add to."""

    name: str

    def open(self, context: BaseContext) -> AbstractContextManager[Any]:
        """Make one that starts at 0 and goes to other processes as an argument."""
        ...

    def add_many(self, counter: Any, count: int) -> None:
        """Add 1, `count` times, each time so that no addition of another process is lost."""
        ...

    def value(self, counter: Any) -> int:
        """The current value of the counter."""
        ...


class LockPeer(Protocol):
    """A lock between processes."""

    name: str

    def open(self, context: BaseContext) -> AbstractContextManager[Any]:
        """Make one that goes to other processes as an argument."""
        ...

    def cycle(self, lock: Any, count: int) -> None:
        """Acquire and release, `count` times."""
        ...


class OpenPool:
    """An open pool of workers. A method that a contender does not override is not measured."""

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """Submit one task for each item, then collect all results."""
        handles = [self.start(function, item) for item in items]
        return [self.finish(handle) for handle in handles]

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        """Run one task, and wait for it."""
        return self.finish(self.start(function, item))

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """Run one task for each item; the results may come in any order."""
        raise Unsupported

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        """Run all items, in chunks of the size that suits the contender best."""
        raise Unsupported

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Submit one task and return its handle."""
        raise Unsupported

    def start_limited(self, function: Callable[..., Any], argument: Any, timeout: float) -> Any:
        """Submit one task that is stopped after `timeout` seconds."""
        raise Unsupported

    def finish(self, handle: Any) -> Any:
        """Wait for the task and return its result."""
        raise Unsupported

    def close(self) -> None:
        """End the pool and wait for its workers."""
        raise NotImplementedError


class Unsupported(Exception):
    """The contender does not support this."""


class PoolPeer(Protocol):
    """A kind of pool."""

    name: str
    #: Workloads divide the number of tasks by this, as for queues.
    slowness: int

    def open(self, workers: int, start_method: str) -> OpenPool:
        """Make a pool, with the start method if the contender lets one choose."""
        ...
