"""Big items that have been taken from a queue, and the memory they lie in.

`get_side` makes one under the lock; the queue opens it afterwards, as `views` or, if regions run short, as a
copy.
"""

from __future__ import annotations

import mmap
import os
import sys
from collections.abc import Callable

from mpkit._shm.queues.regions import Regions
from mpkit._shm.queues.views import open_views


class BigRecord:
    """A big item that has been taken from the queue: its pickle and its buffers."""

    __slots__ = ("buffers", "head")

    def __init__(self, head: memoryview | bytes, buffers: list[memoryview]) -> None:
        self.head = head
        self.buffers = buffers


class HeldItem:
    """A big item, in a region that is this process's from the moment it is taken until it is dropped.

    It is opened by whoever has taken it, holding no lock: that may import a module, or copy the item, for as
    long as that takes. One that is not opened gives its region back when it is dropped.
    """

    __slots__ = ("_mapped", "_number", "_pid", "_places", "_region", "_regions", "_serial")

    def __init__(
        self,
        regions: Regions,
        mapped: mmap.mmap,
        number: int,
        serial: int,
        places: tuple[tuple[int, int], ...],
    ) -> None:
        self._regions = regions
        # Another thread may close the queue before it is opened.
        self._mapped = mapped
        self._places = places
        self._serial = serial
        self._pid = os.getpid()
        self._region = number
        # The region that is to be given back; 0, where no item lies: none.
        self._number = 0

    def is_taken(self) -> None:
        """It is in the queue no more: from now on the region goes with this object."""
        self._number = self._region

    def open(self) -> BigRecord:
        """Views of its parts; copies where regions run short or there are no views. To be called once."""
        regions = self._regions
        if self._pid != os.getpid():
            raise RuntimeError(
                "this process was forked in the middle of taking an item from a queue (in a signal "
                "handler?); the item belongs to the parent"
            )
        try:
            parts = None
            if not regions.are_short():
                try:
                    parts = open_views(regions, self._mapped, self._number, self._serial, self._places)
                except (ImportError, OSError):
                    # Without ctypes, or a descriptor to load it, there are none; the item has been taken.
                    parts = None
            if parts is not None:
                # Theirs from here on.
                self._number = 0
            else:
                # Getters keep so many items that regions run short, say: here they get copies.
                parts = [memoryview(bytearray(self._mapped[at : at + size])) for at, size in self._places]
                self._give_back()
            return BigRecord(parts[0], parts[1:])
        except BaseException:
            # An interrupt may have come when there were views already, which have freed it as they went.
            self._give_back()
            raise

    def _give_back(self) -> None:
        # Once only, whatever comes in between: see `let_go`.
        if self._number:
            self._regions.let_go(self._number, self._serial)
            self._number = 0

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter globals are gone, and the process leaves the region anyway.
        if getattr(self, "_number", 0) and not _is_finalizing() and self._pid == os.getpid():
            self._give_back()
