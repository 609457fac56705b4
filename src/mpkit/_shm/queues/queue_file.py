"""The file and the semaphores of a queue, and the objects for the parts of the file.

`open_queue` adds the two sides, which use these words, locks and sleepers.
"""

from __future__ import annotations

from functools import partial
from typing import ClassVar

from mpkit._shm.locks.shared_file import Form
from mpkit._shm.locks.shared_object import SharedObject
from mpkit._shm.locks.sleepers import FIRST_TICKET, Sleepers, Waker
from mpkit._shm.memory.segment import PAGE, Segment, round_up
from mpkit._shm.memory.semaphore import Semaphore
from mpkit._shm.queues import layout
from mpkit._shm.queues.borrowers import Borrowers
from mpkit._shm.queues.generations import Generations
from mpkit._shm.queues.region_supply import RegionSupply
from mpkit._shm.queues.region_uses import look_at_uses
from mpkit._shm.queues.regions import Regions
from mpkit._shm.queues.ring import WRAP

#: The words that count tickets and tokens, of all groups of sleepers.
_TICKETS = (
    layout.ITEMS_SLEPT,
    layout.ITEMS_POSTED,
    layout.ROOM_SLEPT,
    layout.ROOM_POSTED,
    layout.DONE_SLEPT,
    layout.DONE_POSTED,
)


class QueueFile(SharedObject):
    """One queue, as this process has it open, without its two sides.

    Attributes:
        maxsize: the bound on items; 0: none.
        max_bytes: the bound on bytes; 0: none.
        put_lock, get_lock: the locks of the two sides.
        regions, supply: the table of regions, and what finds free ones.
        generations: the rings.
        items, room, done: the sleepers that wait for an item, for room, and in `join`.
        getters: wakes the sleepers in `items`, under the putters' lock.
        putters: wakes the sleepers in `room`, under the getters' lock.
    """

    __slots__ = (
        "done",
        "generations",
        "get_lock",
        "getters",
        "items",
        "max_bytes",
        "maxsize",
        "put_lock",
        "putters",
        "regions",
        "room",
        "supply",
    )

    form: ClassVar[Form] = layout.FORM

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        super().__init__(segment, semaphores)
        words = self.words
        self.maxsize = words[layout.MAXSIZE]
        self.max_bytes = words[layout.MAX_BYTES]
        self.put_lock, self.get_lock = self.locks
        items, room, done = semaphores[layout.FORM.locks :]
        borrowers = Borrowers(
            words,
            start=layout.BORROWERS,
            capacity=layout.BORROWER_SLOTS,
            loans_at=layout.LOANS,
            lock=self.get_lock,
        )
        self.regions = Regions(
            segment,
            start=layout.REGIONS,
            capacity=layout.REGION_SLOTS,
            borrowers=borrowers,
        )
        self.generations = Generations(words, segment.mm, self.regions)
        self.supply = RegionSupply(
            self.regions, layout.FIRST_REGION, partial(look_at_uses, words, self.generations)
        )
        self.items = Sleepers(words, slept_at=layout.ITEMS_SLEPT, posted_at=layout.ITEMS_POSTED, tokens=items)
        self.room = Sleepers(words, slept_at=layout.ROOM_SLEPT, posted_at=layout.ROOM_POSTED, tokens=room)
        self.done = Sleepers(words, slept_at=layout.DONE_SLEPT, posted_at=layout.DONE_POSTED, tokens=done)
        self.getters = Waker(self.items, self.put_lock)
        self.putters = Waker(self.room, self.get_lock)

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:
        words[layout.MAXSIZE] = options["maxsize"]
        words[layout.MAX_BYTES] = options["max_bytes"]
        # Regions begin at a page boundary, because only whole pages can be mapped (16 or 64 KiB on some
        # machines).
        words[layout.FIRST_REGION] = round_up(layout.FORM.file_bytes, PAGE)
        for at in _TICKETS:
            words[at] = FIRST_TICKET
        # Generation 0 is in region 0. Its head and tail are zero, as the whole file is at first.
        words[layout.FIRST_RING + layout.FIRST_RING_WORDS - 1] = WRAP

    def _close_more(self) -> None:
        self.regions.close()
