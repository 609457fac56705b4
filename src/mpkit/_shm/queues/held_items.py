"""Big items that have been taken from a queue, and the memory that they occupy.

`get_side` makes a `HeldItem` under the lock; the queue opens it afterwards, as views or, if regions run
short, as a copy.
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
    """A big item that is being taken, or has been taken, and the region that it occupies.

    From the moment at which it is taken, the region belongs to this process. The item is opened without a
    lock, because that may import a module or copy the item, and so take long. An item that is dropped
    unopened gives its region back.
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
        # Kept, because another thread may close the queue before the item is opened.
        self._mapped = mapped
        self._places = places
        self._serial = serial
        self._pid = os.getpid()
        self._region = number
        # The region that this object has to give back; 0 (which is never an item's region): none.
        self._number = 0

    def taken(self) -> None:
        """Record that the item has left the queue: from now on this object has to give the region back."""
        self._number = self._region

    def open(self) -> BigRecord:
        """Return views of its parts, or copies, if regions run short or views are not possible.

        To be called once.

        Raises:
            RuntimeError: this is a forked child, and the item belongs to its parent.
        """
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
                    # ctypes is missing, or there is no descriptor to load it. The item has been taken, so it
                    # must be delivered.
                    parts = None
            if parts is not None:
                # From here on the views give the region back.
                self._number = 0
            else:
                # For example, because getters keep so many items that regions run short.
                parts = [memoryview(bytearray(self._mapped[at : at + size])) for at, size in self._places]
                self._give_back()
            return BigRecord(parts[0], parts[1:])
        except BaseException:
            # If an interrupt came after the views were made, these have given the region back as they went;
            # doing so again does no harm.
            self._give_back()
            raise

    def _give_back(self) -> None:
        # If an interrupt comes in between, this is done again, which does no harm (see `Regions.let_go`).
        if self._number:
            self._regions.let_go(self._number, self._serial)
            self._number = 0

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter is shutting down, globals may be gone. The region is reclaimed after the
        # process has ended. (In a forked child this does nothing: the region belongs to its parent.)
        if getattr(self, "_number", 0) and not _is_finalizing():
            self._give_back()
