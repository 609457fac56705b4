"""A queue as this process has it open, with the two sides that all its handles share."""

from __future__ import annotations

from mpkit._platform.hints import override
from mpkit._shm.get_side import GetSide
from mpkit._shm.put_side import PutSide
from mpkit._shm.queue_file import QueueFile
from mpkit._shm.segment import Segment
from mpkit._shm.semaphore import Semaphore


class OpenQueue(QueueFile):
    """The file, its putters' side and its getters' side."""

    __slots__ = ("gets", "puts")

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        self.puts = PutSide(self)
        self.gets = GetSide(self, self.puts)
        self.put_lock.repair = self.puts.ring.repair
        self.get_lock.repair = self.gets.repair

    @override
    def _take_apart(self) -> None:
        super()._take_apart()
        del self.puts, self.gets
