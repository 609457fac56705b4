"""py-sharedmemory: one sender and several receivers; each message is a block of shared memory."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any

from benchmarks.peers.base import QueueEnds, Room

DISTRIBUTION = "py-sharedmemory"


class _Ends(QueueEnds):
    def __init__(self, sender: Any, receiver: Any) -> None:
        super().__init__(None)
        self.sender, self.receiver = sender, receiver

    def putter(self) -> Callable[[Any], object]:
        put: Callable[[Any], object] = self.sender.put
        return put

    def getter(self) -> Callable[[], Any]:
        get: Callable[[], Any] = self.receiver.get
        return get

    def finish(self) -> None:
        self.sender.wait_for_all_ack()
        self.sender.close()

    def close(self) -> None:
        self.receiver.close()
        self.sender.close()


class _Queue:
    name = "py-sharedmemory"
    putters = 1
    slowness = 20

    def open(self, context: BaseContext, room: Room) -> QueueEnds:
        make = importlib.import_module("py_sharedmemory").create_shared_memory_pair
        # Without a bound it would create a block for each small item. Its documentation uses such capacities.
        return _Ends(*make(capacity=room.items or 64, ctx=context))


QUEUES = (_Queue(),)
