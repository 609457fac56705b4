"""dejaq: a ring buffer in shared memory with POSIX semaphores, made for arrays."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import QueueEnds, Room

DISTRIBUTION = "dejaq"


def _open(room: Room) -> Any:
    # Its initialisation configures the root logger, which does no harm in a process that only measures.
    return importlib.import_module("dejaq").DejaQueue(buffer_bytes=room.ring_bytes)


class _Queue:
    name = "dejaq"
    putters = 99
    slowness = 2

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = context
        return QueueEnds(_open(room))


class _InPlaceEnds(QueueEnds):
    """Items are not copied out of the queue: a callback reads them inside it, under the lock."""

    def reader(self, read: Callable[[Any], Any]) -> Callable[[], Any]:
        """Return a function that takes one item and returns ``read(item)``."""
        get = self.queue.get
        return lambda: get(callback=read)


class _InPlaceQueue:
    name = "dejaq (callback)"
    putters = 99
    slowness = 2

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        _ = context
        return _InPlaceEnds(_open(room))


QUEUES = (_Queue(), _InPlaceQueue())
