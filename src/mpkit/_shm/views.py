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
from types import ModuleType

from mpkit._platform import seam
from mpkit._platform.interrupts import deferred_interrupts
from mpkit._shm.regions import Regions

#: How long a fork waits for another thread that is just opening views.
_OPENING_SECONDS = 1.0


class _Hold:
    """One region that this process has views of, or is about to have."""

    __slots__ = ("_pid", "_slot", "kept", "number", "reference", "regions")

    def __init__(self, regions: Regions, number: int) -> None:
        self.regions: Regions = regions
        self.number: int = number
        self._pid = os.getpid()
        # Where this process stands among the borrowers, if it was forked with the views; 0: it has received
        # them itself.
        self._slot = 0
        #: The region is never used again.
        self.kept: bool = False
        self.reference: weakref.ref[object] | None = None

    def exporter(self) -> object:
        """What keeps the views from going as long as one has it; None when they have gone."""
        # Without a reference they are just coming.
        return self if self.reference is None else self.reference()

    def end(self, _reference: object) -> None:
        """The last view has gone (in any thread, possibly in the middle of a garbage collection: one store,
        no lock).
        """
        _holds.discard(self)
        if os.getpid() != self._pid or self.kept:
            return
        if self._slot:
            self.regions.give_back(self._slot)
        else:
            self.regions.let_go(self.number)

    def lent(self, slot: int) -> None:
        """Before a fork, the views being there: the child has that slot; 0: it has none."""
        if not slot:
            self.keep_for_ever()
        elif not self._slot:
            self.regions.mark_lent(self.number)

    def keep_for_ever(self) -> None:
        """Somebody has views who stands nowhere."""
        if not self.kept:
            self.kept = True
            if self._slot:
                self.regions.keep_for_ever(self._slot)
            else:
                self.regions.pin(self.number)

    def inherit(self, slot: int) -> None:
        """In the child: it has the views, too."""
        # With that in hand they do not go before the slot says whose it is.
        exporter = self.exporter()
        if exporter is None:
            self.regions.give_back(slot)
            _holds.discard(self)
            return
        self._slot = slot
        self.kept = False
        self._pid = os.getpid()
        # Without descriptors it cannot say who it is: the slot is this process's all the same, until the last
        # view goes.
        with contextlib.suppress(OSError):
            self.regions.arrive(slot)
        del exporter


_holds: set[_Hold] = set()
#: What each thread that is about to fork has lent to the child, and whether it has `_opening`. A list,
#: because a signal handler may fork in the middle of that.
_lent: dict[int, list[tuple[dict[_Hold, int], bool]]] = {}
# Taken by whoever opens views, and by whoever forks, from before the fork until after it: so that no views
# come that have not been lent. The same thread may take it twice (a fork in a signal handler).
_opening = seam.InterruptibleLock()


def open_views(
    regions: Regions, mapped: mmap.mmap, number: int, parts: tuple[tuple[int, int], ...]
) -> list[memoryview]:
    """Views of the parts (offset, length) of a region held by this process, which `mapped` shows; it is free
    again when all of them are gone.
    """
    import ctypes  # noqa: PLC0415  only who receives big items needs it

    return _opening.run(_open_views, ctypes, regions, mapped, number, parts)


def _open_views(
    ctypes: ModuleType, regions: Regions, mapped: mmap.mmap, number: int, parts: tuple[tuple[int, int], ...]
) -> list[memoryview]:
    end = max(offset + length for offset, length in parts)
    hold = _Hold(regions, number)
    # First: should this very thread fork meanwhile (in a signal handler), the child has views of it as well.
    _holds.add(hold)
    try:
        exporter = (ctypes.c_char * end).from_buffer(mapped)
        whole = memoryview(exporter).cast("B")
        views = [whole[offset : offset + length] for offset, length in parts]
        hold.reference = weakref.ref(exporter, hold.end)
    except BaseException:
        _holds.discard(hold)
        raise
    return views


def _before_fork() -> None:
    lent: dict[_Hold, int] = {}
    # An interrupt would leave locks taken: nobody hears of what a hook raises.
    with deferred_interrupts():
        taken = _opening.acquire(timeout=_OPENING_SECONDS)
        _lent.setdefault(threading.get_ident(), []).append((lent, taken))
        # With its exporter in hand no hold ends meanwhile.
        exporters = {
            hold: exporter
            for hold in list(_holds)
            if not hold.kept and (exporter := hold.exporter()) is not None
        }
        try:
            for regions in {hold.regions for hold in exporters}:
                holds = [hold for hold in exporters if hold.regions is regions]
                for hold, slot in zip(holds, regions.lend([hold.number for hold in holds]), strict=True):
                    lent[hold] = slot
                    hold.lent(slot)
        finally:
            # Whatever went wrong (no memory): the fork will come all the same.
            for hold in exporters:
                if hold not in lent:
                    lent[hold] = 0
                    hold.keep_for_ever()


def _after_fork_in_parent() -> None:
    me = threading.get_ident()
    with deferred_interrupts():
        under_way = _lent.get(me)
        if not under_way:
            # This module was loaded in the middle of the fork, by another thread.
            return
        lent, taken = under_way.pop()
        if not under_way:
            del _lent[me]
        if taken:
            _opening.release()
        else:
            for hold in list(_holds):
                if hold not in lent:
                    # Another thread has opened it between the first look and the fork itself.
                    hold.keep_for_ever()


def _after_fork_in_child() -> None:
    global _opening
    # Other threads were about to fork children of their own, or were opening views.
    lent, _ = _lent.get(threading.get_ident(), [({}, False)])[-1]
    _lent.clear()
    _opening = seam.InterruptibleLock()
    # Those that are kept for ever are nobody's business any more.
    _holds.intersection_update([hold for hold, slot in lent.items() if slot])
    for hold, slot in lent.items():
        if hold in _holds:
            hold.inherit(slot)
        elif slot:
            # The last view went before the fork itself.
            hold.regions.give_back(slot)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
    )
