"""What the workloads ask of a contender."""

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
        items: the bound on items, 0 for none.
        item_bytes: about how large an item is, for contenders whose memory must be sized beforehand.
    """

    items: int = 0
    item_bytes: int = 64

    @property
    def ring_bytes(self) -> int:
        """A size that holds `items` of them with room to spare; at least what faster-fifo has by default."""
        if not self.items:
            return 4_000_000
        return max(self.items * (self.item_bytes + 4096), 1_000_000)


class QueueEnds:
    """An open queue; goes to other processes as an argument. The base suits all that have `put` and `get`."""

    def __init__(self, queue: Any) -> None:
        self.queue = queue

    def putter(self) -> Callable[[Any], object]:
        """What puts one item; called once in each process that puts."""
        put: Callable[[Any], object] = self.queue.put
        return put

    def getter(self) -> Callable[[], Any]:
        """What takes one item, waiting for it; called once in each process that gets."""
        get: Callable[[], Any] = self.queue.get
        return get

    def many_putter(self) -> Callable[[Sequence[Any]], object]:
        """What puts a batch: item by item where there is no call for it."""
        put = self.putter()

        def put_each(items: Sequence[Any]) -> None:
            for item in items:
                put(item)

        return put_each

    def many_getter(self, limit: int) -> Callable[[], Sequence[Any]]:
        """What takes up to `limit` items, at least one."""
        get = self.getter()

        def get_one() -> Sequence[Any]:
            return (get(),)

        _ = limit
        return get_one

    def finish(self) -> None:
        """Called in a process that put, at its end: what it put must arrive."""

    def close(self) -> None:
        """Called in the process that opened it, when all others have ended."""


class QueuePeer(Protocol):
    """A kind of queue."""

    name: str
    #: Most processes that may put.
    putters: int
    #: How many times fewer items it gets in a throughput workload, so that a slow one does not take minutes.
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
        """Its value now."""
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
    """An open pool of workers. What a contender does not offer stays as it is here and is not measured."""

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        """One task for each item, all submitted, then all collected."""
        handles = [self.start(function, item) for item in items]
        return [self.finish(handle) for handle in handles]

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        """One task, and wait for it."""
        return self.finish(self.start(function, item))

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        """One task for each item, results as they come."""
        raise Unsupported

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        """All items in chunks as the contender likes them best."""
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
    """The contender has no such call."""


class PoolPeer(Protocol):
    """A kind of pool."""

    name: str
    #: As for queues.
    slowness: int

    def open(self, workers: int, start_method: str) -> OpenPool:
        """Make one, with the start method if the contender lets one choose."""
        ...
