"""faster-fifo: a ring buffer in shared memory, in C++."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import QueueEnds, Room

DISTRIBUTION = "faster-fifo"

#: The timeout of calls, whose default of 10 s is too short here.
_PATIENCE = 3600.0


class _Ends(QueueEnds):
    def putter(self) -> Callable[[Any], object]:
        put = self.queue.put
        return lambda item: put(item, True, _PATIENCE)

    def getter(self) -> Callable[[], Any]:
        get = self.queue.get
        return lambda: get(True, _PATIENCE)

    def many_putter(self) -> Callable[[Sequence[Any]], object]:
        put_many = self.queue.put_many
        return lambda items: put_many(items, True, _PATIENCE)

    def many_getter(self, limit: int) -> Callable[[], Sequence[Any]]:
        get_many = self.queue.get_many
        return lambda: get_many(True, _PATIENCE, limit)


class _Queue:
    name = "faster-fifo"
    putters = 99
    slowness = 1

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = context
        kind = importlib.import_module("faster_fifo").Queue
        bound = {"maxsize": room.items} if room.items else {}
        return _Ends(kind(max_size_bytes=room.ring_bytes, **bound))


QUEUES = (_Queue(),)
