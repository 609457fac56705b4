"""Views into a region that free it when the last of them goes.

The exporter of the views is a ctypes array on the mapping: it lives exactly as long as any view of it,
    however the object that was
unpickled slices, wraps or passes its buffer on, and a weak reference tells when it goes.
"""

from __future__ import annotations

import os
import weakref

from mpkit._shm.regions import Regions


class _Hold:
    """One region that this process has views of."""

    __slots__ = ("_number", "_pid", "_pinned", "_regions", "reference")

    def __init__(self, regions: Regions, number: int) -> None:
        self._regions = regions
        self._number = number
        self._pid = os.getpid()
        self._pinned = False
        self.reference: weakref.ref[object] | None = None

    def end(self, _reference: object) -> None:
        """The last view has gone (in any thread, possibly in the middle of a garbage collection: one store,
        no lock).
        """
        _holds.discard(self)
        if os.getpid() == self._pid and not self._pinned:
            self._regions.free(self._number)

    def pin(self) -> None:
        self._pinned = True
        self._regions.pin(self._number)


_holds: set[_Hold] = set()


def open_views(regions: Regions, number: int, parts: tuple[tuple[int, int], ...]) -> list[memoryview]:
    """Views of the parts (offset, length) of a region held by this process; it is free again when all of them
    are gone.
    """
    import ctypes  # noqa: PLC0415  only who receives big items needs it

    mapped = regions.map(number)
    end = max(offset + length for offset, length in parts)
    exporter = (ctypes.c_char * end).from_buffer(mapped)
    hold = _Hold(regions, number)
    whole = memoryview(exporter).cast("B")
    views = [whole[offset : offset + length] for offset, length in parts]
    hold.reference = weakref.ref(exporter, hold.end)
    _holds.add(hold)
    return views


def _pin_before_fork() -> None:
    # The child gets a copy of every view; the region must not change under its eyes when the parent has let
    # go of its own.
    for hold in list(_holds):
        hold.pin()


def _forget_after_fork() -> None:
    _holds.clear()


if hasattr(os, "register_at_fork"):
    # In the parent once more: another thread may have opened views between the first time and the fork
    # itself.
    os.register_at_fork(
        before=_pin_before_fork, after_in_parent=_pin_before_fork, after_in_child=_forget_after_fork
    )
