"""zooparallel: queue, lock and pool over shared memory, in Rust."""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import pickle
import uuid
from collections.abc import Callable, Iterator, Sequence
from ctypes import c_int64
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import OpenPool, QueueEnds, Room

DISTRIBUTION = "zooparallel"


def _name(kind: str) -> str:
    return f"bench-{kind}-{os.getpid()}-{uuid.uuid4().hex[:8]}"


class _Ends(QueueEnds):
    """Its queue carries bytes, so items are pickled as in its own pool. Each process opens it by its name."""

    def __init__(self, name: str, megabytes: int) -> None:
        super().__init__(None)
        self.name, self.megabytes = name, megabytes
        # The first process that opens it creates it.
        self.queue = self._open()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "megabytes": self.megabytes, "queue": None}

    def _open(self) -> Any:
        return importlib.import_module("zooparallel").ZooQueue(self.name, self.megabytes)

    def putter(self) -> Callable[[Any], object]:
        put_bytes, dumps = self._open().put_bytes, pickle.dumps
        return lambda item: put_bytes(dumps(item, 5))

    def getter(self) -> Callable[[], Any]:
        # Not with its view into the queue: with several getters, that returns some items twice (2026.2.2).
        get_bytes, loads = self._open().get_bytes, pickle.loads
        return lambda: loads(get_bytes())

    def close(self) -> None:
        type(self.queue).unlink(self.name)


class _Queue:
    name = "ZooQueue"
    putters = 99
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = context
        return _Ends(_name("queue"), -(-room.ring_bytes // 1_000_000) + 2)


class _NamedLock:
    """A lock that each process opens by its name."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.lock = self.open()

    def __getstate__(self) -> dict[str, Any]:
        return {"name": self.name, "lock": None}

    def open(self) -> Any:
        return importlib.import_module("zooparallel").ZooLock(self.name)

    def remove(self) -> None:
        type(self.lock).unlink(self.name)


class _Lock:
    name = "ZooLock"

    @contextlib.contextmanager
    def open(self, context: BaseContext) -> Iterator[Any]:
        _ = context
        lock = _NamedLock(_name("lock"))
        yield lock
        lock.remove()

    def cycle(self, lock: Any, count: int) -> None:
        here = lock.open()
        acquire, release = here.acquire, here.release
        for _ in range(count):
            acquire()
            release()


class _Counter:
    """zooparallel has no counter, so this is a shared number under its lock."""

    name = "ZooLock + RawValue"

    @contextlib.contextmanager
    def open(self, context: BaseContext) -> Iterator[Any]:
        lock = _NamedLock(_name("counter"))
        yield lock, context.RawValue(c_int64, 0)
        lock.remove()

    def add_many(self, counter: Any, count: int) -> None:
        named, number = counter
        lock = named.open()
        for _ in range(count):
            with lock:
                number.value += 1

    def value(self, counter: Any) -> int:
        return int(counter[1].value)


class _OpenPool(OpenPool):
    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self.pool.map(function, items)
        return results

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.submit(function, *arguments)

    def finish(self, handle: Any) -> Any:
        return handle.result()

    def close(self) -> None:
        self.pool.shutdown()


class _Pool:
    name = "ZooPool"
    slowness = 2

    def open(self, workers: int, start_method: str) -> OpenPool:
        multiprocessing.set_start_method(start_method, force=True)
        return _OpenPool(importlib.import_module("zooparallel").ZooPool(workers, buffer_size_mb=64))


QUEUES = (_Queue(),)
COUNTERS = (_Counter(),)
LOCKS = (_Lock(),)
POOLS = (_Pool(),)
