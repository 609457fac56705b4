"""The standard library: `multiprocessing` and `concurrent.futures`."""

from __future__ import annotations

import concurrent.futures
import contextlib
import multiprocessing
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import OpenPool, QueueEnds, Room

DISTRIBUTION = None


class _QueueEnds(QueueEnds):
    def close(self) -> None:
        self.queue.close()


class _Queue:
    name = "multiprocessing.Queue"
    putters = 99
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        return _QueueEnds(context.Queue(room.items))


class _SimpleQueue:
    name = "SimpleQueue"
    putters = 99
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = room  # its only bound is the capacity of a pipe
        return _QueueEnds(context.SimpleQueue())


class _ManagedEnds(QueueEnds):
    def __init__(self, manager: Any, queue: Any) -> None:
        super().__init__(queue)
        self.manager = manager

    def __getstate__(self) -> dict[str, Any]:
        return {"queue": self.queue, "manager": None}

    def close(self) -> None:
        self.manager.shutdown()


class _ManagedQueue:
    name = "Manager().Queue()"
    putters = 99
    slowness = 10

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        manager = context.Manager()
        return _ManagedEnds(manager, manager.Queue(room.items))


class _PipeEnds(QueueEnds):
    def __init__(self, receiving: Any, sending: Any) -> None:
        super().__init__(None)
        self.receiving, self.sending = receiving, sending

    def putter(self) -> Callable[[Any], object]:
        send: Callable[[Any], object] = self.sending.send
        return send

    def getter(self) -> Callable[[], Any]:
        receive: Callable[[], Any] = self.receiving.recv
        return receive


class _Pipe:
    name = "Pipe"
    putters = 1
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = room
        return _PipeEnds(*context.Pipe(duplex=False))


class _Value:
    name = "multiprocessing.Value"

    @contextlib.contextmanager
    def open(self, context: BaseContext) -> Iterator[Any]:
        yield context.Value("q", 0)

    def add_many(self, counter: Any, count: int) -> None:
        get_lock = counter.get_lock
        for _ in range(count):
            with get_lock():
                counter.value += 1

    def value(self, counter: Any) -> int:
        return int(counter.value)


class _Lock:
    name = "multiprocessing.Lock"

    @contextlib.contextmanager
    def open(self, context: BaseContext) -> Iterator[Any]:
        yield context.Lock()

    def cycle(self, lock: Any, count: int) -> None:
        acquire, release = lock.acquire, lock.release
        for _ in range(count):
            acquire()
            release()


class StdlibPool(OpenPool):
    """A `multiprocessing.Pool`, or one with its methods."""

    def __init__(self, pool: Any) -> None:
        self.pool = pool

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        apply_async = self.pool.apply_async
        handles = [apply_async(function, (item,)) for item in items]
        return [handle.get() for handle in handles]

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.pool.apply(function, (item,))

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.imap_unordered(function, items)
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self.pool.map(function, items)
        return results

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.apply_async(function, arguments)

    def finish(self, handle: Any) -> Any:
        return handle.get()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class _Pool:
    name = "multiprocessing.Pool"
    slowness = 1

    def open(self, workers: int, start_method: str) -> OpenPool:
        return StdlibPool(multiprocessing.get_context(start_method).Pool(workers))


class ExecutorPool(OpenPool):
    """A `concurrent.futures.Executor`."""

    def __init__(self, executor: Any, workers: int) -> None:
        self.executor = executor
        self.workers = workers

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        # The closest that an executor has: `as_completed` over many futures would be slower than this.
        results: Iterable[Any] = self.executor.map(function, items)
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        # An executor does not choose a chunk size, so use that of multiprocessing.Pool.
        chunk = -(-len(items) // (4 * self.workers))
        return list(self.executor.map(function, items, chunksize=chunk))

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.executor.submit(function, *arguments)

    def finish(self, handle: Any) -> Any:
        return handle.result()

    def close(self) -> None:
        self.executor.shutdown()


class _Executor:
    name = "ProcessPoolExecutor"
    slowness = 2

    def open(self, workers: int, start_method: str) -> OpenPool:
        context = multiprocessing.get_context(start_method)
        return ExecutorPool(concurrent.futures.ProcessPoolExecutor(workers, mp_context=context), workers)


QUEUES = (_Queue(), _SimpleQueue(), _ManagedQueue(), _Pipe())
COUNTERS = (_Value(),)
LOCKS = (_Lock(),)
POOLS = (_Pool(), _Executor())
