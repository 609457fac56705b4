"""A queue, as this process has it open: the file with its putters' side and its getters' side."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mpkit._platform.hints import override
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit._shm.queues.get_side import GetSide
from mpkit._shm.queues.put_side import PutSide
from mpkit._shm.queues.queue_file import QueueFile

if TYPE_CHECKING:
    from mpkit._shm.queues.async_waiters import AsyncWaiters


class OpenQueue(QueueFile):
    """A queue with both sides, which all handles of the process share."""

    __slots__ = ("_async_waiters", "gets", "puts")

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        # By the process: a fork leaves its threads behind.
        self._async_waiters: dict[int, AsyncWaiters] = {}
        self.puts = PutSide(self)
        self.gets = GetSide(self, self.puts)
        self.put_lock.repair = self.puts.ring.repair
        self.get_lock.repair = self.gets.repair
        self._constructed()

    def async_waiters(self) -> AsyncWaiters:
        """The object through which the coroutines of this process wait."""
        here = os.getpid()
        found = self._async_waiters.get(here)
        if found is None:
            from mpkit._shm.queues.async_waiters import AsyncWaiters  # noqa: PLC0415  asyncio is for those who use it

            # If several threads come at the same time, all get the one that was stored first.
            found = self._async_waiters.setdefault(here, AsyncWaiters(self, self.puts, self.gets))
        return found

    @override
    def close(self) -> None:
        super().close()
        waiters = self._async_waiters.pop(os.getpid(), None)
        if waiters is not None:
            waiters.stop()

    @override
    def _take_apart(self) -> None:
        super()._take_apart()
        del self.puts, self.gets
        self._async_waiters.clear()
