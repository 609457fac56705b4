"""mpkit itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import OpenPool, QueueEnds, Room

DISTRIBUTION = "mpkit"


class _Ends(QueueEnds):
    def many_putter(self) -> Callable[[Sequence[Any]], object]:
        put_many: Callable[[Sequence[Any]], object] = self.queue.put_many
        return put_many

    def many_getter(self, limit: int) -> Callable[[], Sequence[Any]]:
        get_many: Callable[[int], Sequence[Any]] = self.queue.get_many
        return lambda: get_many(limit)

    def close(self) -> None:
        self.queue.close()


class _Queue:
    name = "mpkit"
    putters = 99
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        from mpkit import BoundedQueue

        _ = context
        return _Ends(BoundedQueue(room.items))


class _Counter:
    name = "mpkit"

    def open(self, context: BaseContext) -> AbstractContextManager[Any]:
        import contextlib

        from mpkit import LockedCounter

        _ = context
        return contextlib.closing(LockedCounter())

    def add_many(self, counter: Any, count: int) -> None:
        add = counter.add
        for _ in range(count):
            add()

    def value(self, counter: Any) -> int:
        value: int = counter.value
        return value


class _Lock:
    name = "mpkit"

    def open(self, context: BaseContext) -> AbstractContextManager[Any]:
        import contextlib

        from mpkit import Lock

        _ = context
        return contextlib.closing(Lock())

    def cycle(self, lock: Any, count: int) -> None:
        acquire, release = lock.acquire, lock.release
        for _ in range(count):
            acquire()
            release()


class OwnPool(OpenPool):
    """A `TaskPool`."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        submit = self.pool.submit
        handles = [submit(function, item) for item in items]
        return [handle.result() for handle in handles]

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.apply(function, (item,))

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.imap_unordered(function, items)
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self.pool.map(function, items)
        return results

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments)

    def start_limited(self, function: Callable[..., Any], argument: Any, timeout: float) -> Any:
        return self.pool.with_options(timeout=timeout).submit(function, argument)

    def finish(self, handle: Any) -> Any:
        return handle.result()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class _Pool:
    name = "mpkit"
    slowness = 1

    def open(self, workers: int, start_method: str) -> OpenPool:
        from mpkit import TaskPool

        return OwnPool(TaskPool(workers, context=start_method))


QUEUES = (_Queue(),)
COUNTERS = (_Counter(),)
LOCKS = (_Lock(),)
POOLS = (_Pool(),)
