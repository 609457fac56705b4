"""What plain Python achieves without any guarantees: an upper limit for every library without compiled code.

There is no lock, no bound, no error handling and no sleeping. Whatever a call costs beyond this is the price
of the guarantees.
"""

from __future__ import annotations

import contextlib
import marshal
import mmap
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from multiprocessing.context import BaseContext
from typing import Any, Final

from benchmarks.peers.base import OpenPool, QueueEnds, Room, Unsupported

DISTRIBUTION = None

#: The number of slots, each for one small item: a length, and the item.
_SLOTS: Final = 1 << 14
_SLOT_BYTES: Final = 64
_TAIL, _HEAD = 0, 8
_START_BYTES: Final = 128


class _RingEnds(QueueEnds):
    """A ring for one putter and one getter, which spin until there is room or an item."""

    def __init__(self) -> None:
        super().__init__(None)
        self.memory = mmap.mmap(-1, _START_BYTES + _SLOTS * _SLOT_BYTES)

    def putter(self) -> Callable[[Any], object]:
        memory, words, dumps = self.memory, memoryview(self.memory).cast("Q"), marshal.dumps
        tail = 0

        def put(item: Any) -> None:
            nonlocal tail
            data = dumps(item)
            while tail - words[_HEAD] >= _SLOTS:
                pass
            at = _START_BYTES + tail % _SLOTS * _SLOT_BYTES
            memory[at : at + len(data)] = data
            tail += 1
            words[_TAIL] = tail

        return put

    def getter(self) -> Callable[[], Any]:
        memory, words, loads = self.memory, memoryview(self.memory).cast("Q"), marshal.loads
        head = 0

        def get() -> Any:
            nonlocal head
            while words[_TAIL] == head:
                pass
            at = _START_BYTES + head % _SLOTS * _SLOT_BYTES
            item = loads(memory[at : at + _SLOT_BYTES])
            head += 1
            words[_HEAD] = head
            return item

        return get


class _Ring:
    name = "bare Python"
    putters = 1
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = room
        if context.get_start_method() != "fork":
            raise Unsupported  # the memory has no name, so it can be passed only to a fork
        return _RingEnds()


class _WrappedSemaphore:
    """A lock with a Python class around it, which does nothing else."""

    def __init__(self, lock: Any) -> None:
        self._acquire = lock.acquire
        self._release = lock.release

    def acquire(self, block: bool = True, timeout: float | None = None) -> bool:
        acquired: bool = self._acquire(block, timeout)
        return acquired

    def release(self) -> None:
        self._release()


class _Lock:
    name = "bare Python"

    @contextlib.contextmanager
    def open(self, context: BaseContext) -> Iterator[Any]:
        if context.get_start_method() != "fork":
            raise Unsupported
        yield _WrappedSemaphore(context.Lock())

    def cycle(self, lock: Any, count: int) -> None:
        acquire, release = lock.acquire, lock.release
        for _ in range(count):
            acquire()
            release()


class _Futures(OpenPool):
    """Futures without a pool behind them: the caller does the work."""

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        futures = []
        for item in items:
            future: Future[Any] = Future()
            future.set_result(function(item))
            futures.append(future)
        return [future.result() for future in futures]

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        return function(item)

    def close(self) -> None:
        """Do nothing: there are no workers."""


class _Pool:
    name = "bare Python"
    slowness = 1

    def open(self, workers: int, start_method: str) -> OpenPool:
        _ = workers, start_method
        return _Futures()


QUEUES = (_Ring(),)
LOCKS = (_Lock(),)
POOLS = (_Pool(),)
