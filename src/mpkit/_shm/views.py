"""Views into a region that free it when the last of them goes.

The exporter of the views is a ctypes array on the mapping: it lives exactly as long as any view of it,
however the object that was unpickled slices, wraps or passes its buffer on. A weak reference tells when it
goes.

The child of a fork gets a copy of every view. It must not see the region used again when the parent has let
go of its own, so before a fork each region is lent to the child (see `borrowers`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref

from mpkit._platform.interrupts import deferred_interrupts
from mpkit._shm.regions import Regions


class _Hold:
    """One region that this process has views of."""

    __slots__ = ("_number", "_pid", "_regions", "_slot", "reference")

    def __init__(self, regions: Regions, number: int) -> None:
        self._regions = regions
        self._number = number
        self._pid = os.getpid()
        # Where this process stands among the borrowers, if it was forked with the views; 0: it has received
        # them itself.
        self._slot = 0
        self.reference: weakref.ref[object] | None = None

    def end(self, _reference: object) -> None:
        """The last view has gone (in any thread, possibly in the middle of a garbage collection: one store,
        no lock).
        """
        _holds.discard(self)
        if os.getpid() != self._pid:
            return
        if self._slot:
            self._regions.give_back(self._slot)
        else:
            self._regions.let_go(self._number)

    def lend(self) -> int:
        """Before a fork: the slot for the child; 0 when there are no views any more, or the region is now
        pinned.
        """
        # With that in hand the last view does not go meanwhile.
        exporter = self.reference() if self.reference is not None else None
        return self._regions.lend(self._number) if exporter is not None else 0

    def pin(self) -> None:
        exporter = self.reference() if self.reference is not None else None
        if exporter is not None:
            self._regions.pin(self._number)

    def inherit(self, slot: int) -> None:
        """In the child."""
        self._slot = slot
        self._pid = os.getpid()
        # Without descriptors it cannot say who it is: the slot is this process's all the same, until the last
        # view goes.
        with contextlib.suppress(OSError):
            self._regions.arrive(slot)

    def return_unused(self, slot: int) -> None:
        """In the child, which has no views of it."""
        self._regions.give_back(slot)


_holds: set[_Hold] = set()
#: What each thread that is about to fork has lent to the child.
_lent: dict[int, dict[_Hold, int]] = {}


def open_views(
    regions: Regions, mapped: mmap.mmap, number: int, parts: tuple[tuple[int, int], ...]
) -> list[memoryview]:
    """Views of the parts (offset, length) of a region held by this process, which `mapped` shows; it is free
    again when all of them are gone.
    """
    import ctypes  # noqa: PLC0415  only who receives big items needs it

    end = max(offset + length for offset, length in parts)
    exporter = (ctypes.c_char * end).from_buffer(mapped)
    hold = _Hold(regions, number)
    whole = memoryview(exporter).cast("B")
    views = [whole[offset : offset + length] for offset, length in parts]
    hold.reference = weakref.ref(exporter, hold.end)
    _holds.add(hold)
    return views


def _before_fork() -> None:
    if _holds:
        # An interrupt would leave the getters' lock taken: nobody hears of what a hook raises.
        with deferred_interrupts():
            _lent[threading.get_ident()] = {hold: hold.lend() for hold in list(_holds)}


def _after_fork_in_parent() -> None:
    lent = _lent.pop(threading.get_ident(), {})
    for hold in list(_holds):
        if hold not in lent:
            # Another thread has opened it between the first look and the fork itself.
            hold.pin()


def _after_fork_in_child() -> None:
    # Other threads were about to fork children of their own.
    lent = _lent.get(threading.get_ident(), {})
    _lent.clear()
    # Those that were pinned are nobody's business any more.
    _holds.intersection_update([hold for hold, slot in lent.items() if slot])
    for hold, slot in lent.items():
        if hold in _holds:
            hold.inherit(slot)
        elif slot:
            # The last view went before the fork itself.
            hold.return_unused(slot)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
