"""Views into a region, which free the region when the last of them goes.

The *exporter* of the views is a ctypes array on the mapping: it lives exactly as long as any view of it,
however the unpickled object slices, wraps or passes on its buffer. A weak reference tells when the exporter
goes.

A forked child gets a copy of every view. The region must not be reused while the child has it, even if the
parent's views are gone. So before a fork each region is lent to the child (see `borrowers`).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import sys
import threading
import weakref
from collections.abc import Callable
from types import ModuleType

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.forks import before_forks, in_forked_children, in_forking_parents
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.queues.regions import Regions

#: In place of a slot: it has been given back.
_GIVEN_BACK = -1
#: How many holds are checked, on average, each time views are opened.
_LOOKS = 32
#: In place of a thread: the hold has ended.
_ENDED = 0
#: How long a fork waits for another thread that is opening views, and such a thread for a fork.
_OPENING_SECONDS = 1.0


class _Hold:
    """One region of which this process has views, or is about to have views.

    Attributes:
        regions: the table of the queue.
        number: the number of the region.
        kept: whether the region is never reused.
        reference: a weak reference to the exporter of the views; None: they do not exist yet.
    """

    __slots__ = ("_enders", "_pid", "_serial", "_slot", "kept", "number", "reference", "regions")

    def __init__(self, regions: Regions, number: int, serial: int) -> None:
        self.regions: Regions = regions
        self.number: int = number
        self._serial = serial
        self._pid = os.getpid()
        # The slot of its loan, if this process was forked with the views; 0: it has received them itself.
        self._slot = 0
        # Under the key None the thread that ends this hold (the first one, decided by one atomic
        # `setdefault`); `_ENDED` when it has.
        self._enders: dict[None, int] = {}
        self.kept: bool = False
        self.reference: weakref.ref[object] | None = None

    def exporter(self) -> object:
        """An object that keeps the views alive while the caller has it; None when they are gone."""
        # Without a reference the views are just being made, and need no protection.
        return self if self.reference is None else self.reference()

    def is_over(self) -> bool:
        """Whether there are no views any more, and never will be."""
        if self.reference is not None:
            return self.reference() is None
        # The views were never made, and the region has been freed otherwise.
        return not self._slot and not self.regions.is_held(self.number, self._serial)

    def end(self, _reference: object, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """End the hold, because the last view is gone: free the region.

        This may happen in any thread, and in the middle of a garbage collection, so it is one store, without
        a lock. It may be called again, after an interrupt in the middle of it.
        """
        # When the interpreter is shutting down, modules and their globals are half gone. Regions of a process
        # that has ended are reclaimed by others.
        if _is_finalizing():
            return
        me = threading.get_ident()
        if self._enders.setdefault(None, me) != me:
            # Another thread is doing this, or has done it. The region must not be freed twice, because it may
            # be in use again.
            return
        try:
            self._end()
            self._enders[None] = _ENDED
        except BaseException:
            # After an interrupt, the next call does it again, in any thread. (After an interrupt before this
            # block, only a call in this thread does.)
            self._enders.clear()
            raise

    def _end(self) -> None:
        if os.getpid() == self._pid:
            slot = self._slot
            if not slot:
                self.regions.let_go(self.number, self._serial)
            elif slot > 0:
                # Recorded before it is given back: given back twice, the slot might be another process's the
                # second time. (If an interrupt comes in between, the slot stays taken until this process
                # ends.)
                self._slot = _GIVEN_BACK
                self.regions.give_back(slot)
        # Last: as long as the hold is in the set, `_sweep` would repeat this.
        _holds.discard(self)

    def lent(self, slot: int) -> None:
        """Before a fork: record that the child's loan is in this slot; 0: that it has views but no loan."""
        if not slot:
            self.keep_for_ever()
        elif not self._slot:
            self.regions.mark_lent(self.number)

    def keep_for_ever(self) -> None:
        """Make sure that the region is never reused, because a process has views without a loan."""
        if not self.kept:
            if self._slot:
                self.regions.keep_for_ever(self.number)
            else:
                self.regions.pin(self.number)
            self.kept = True

    def is_of_this_process(self) -> bool:
        """Whether it is this process's, and not merely a copy of its parent's from the fork."""
        return self._pid == os.getpid()

    def inherit(self, slot: int) -> None:
        """In a forked child: make the hold this process's, with the loan in this slot. May be repeated."""
        self._slot = slot
        self.kept = False
        self._pid = os.getpid()
        # OSError: without a descriptor left this process cannot find out its own start time. The slot then
        # stays in the state "being forked", and is this process's nevertheless, until its last view goes.
        with contextlib.suppress(OSError):
            self.regions.arrive(slot)


#: All holds of this process.
_holds: set[_Hold] = set()
#: How often views have been opened since all holds were checked.
_opened = 0
#: For each thread that is about to fork: the slot of the loan to the child for each hold (0: none). There is
#: a list of these because a signal handler may fork in the middle of another fork.
_lent: dict[int, list[dict[_Hold, int]]] = {}
# Held while views are opened, and from before a fork until after it, so that no views are made that have not
# been lent. The same thread may take it twice (a fork in a signal handler).
_opening = InterruptibleLock()


def open_views(
    regions: Regions, mapped: mmap.mmap, number: int, serial: int, parts: tuple[tuple[int, int], ...]
) -> list[memoryview] | None:
    """Make views of a big item in a region that this process holds. When all are gone, the region is free.

    Args:
        regions: the table of regions.
        mapped: the mapping of the region.
        number: the number of the region.
        serial: the number of the item in the queue.
        parts: offset and length of each part.

    Returns:
        A view of each part. None: another thread has been forking for too long. (A fork hook of the
        application may be waiting for the calling thread.)

    Blocking: for a second at most, while another thread forks.
    """
    import ctypes  # noqa: PLC0415  only needed by processes that receive big items

    opening = _opening
    try:
        if not opening.acquire(timeout=_OPENING_SECONDS):
            return None
        return _open_views(ctypes, mapped, _Hold(regions, number, serial), parts)
    finally:
        try:
            opening.unwind()
        finally:
            opening.unwind()


def _open_views(
    ctypes: ModuleType, mapped: mmap.mmap, hold: _Hold, parts: tuple[tuple[int, int], ...]
) -> list[memoryview]:
    _sweep_in_time()
    end = max(offset + length for offset, length in parts)
    try:
        # First: if this thread forks meanwhile (in a signal handler), the child has views, too.
        _holds.add(hold)
        exporter = (ctypes.c_char * end).from_buffer(mapped)
        whole = memoryview(exporter).cast("B")
        views = [whole[offset : offset + length] for offset, length in parts]
        hold.reference = weakref.ref(exporter, hold.end)
    except BaseException:
        # The caller frees the region.
        hold.reference = None
        _holds.discard(hold)
        raise
    return views


def _sweep_in_time() -> None:
    """Call `_sweep`, but less often the more holds there are (a program may keep all that it receives)."""
    global _opened
    _opened += 1
    if _opened * _LOOKS >= len(_holds):
        _opened = 0
        _sweep()


def _sweep() -> None:
    """End holds whose views are gone, in case an interrupt kept the callback of a weak reference from it."""
    for hold in list(_holds):
        if hold.is_over():
            hold.end(None)


@before_forks
def _before_fork() -> None:
    # Interrupts are deferred, because an exception that a fork hook raises is lost, and the fork happens
    # nevertheless.
    lent: dict[_Hold, int] = {}
    _lent.setdefault(threading.get_ident(), []).append(lent)
    with deferred_interrupts():
        _opening.acquire(timeout=_OPENING_SECONDS)
        # While the exporters are referenced here, no hold ends.
        exporters: dict[_Hold, object] = {}
        for hold in list(_holds):
            if (exporter := hold.exporter()) is None:
                # The views are gone, and another thread is just ending the hold: the child has no views.
                lent[hold] = 0
            elif not hold.kept:
                exporters[hold] = exporter
        try:
            for regions in {hold.regions for hold in exporters}:
                holds = [hold for hold in exporters if hold.regions is regions]
                for hold, slot in zip(holds, regions.lend([hold.number for hold in holds]), strict=True):
                    lent[hold] = slot
                    hold.lent(slot)
        finally:
            for hold in exporters:
                if hold not in lent:
                    lent[hold] = 0
                    hold.keep_for_ever()


@in_forking_parents
def _after_fork_in_parent() -> None:
    me = threading.get_ident()
    with deferred_interrupts():
        under_way = _lent.get(me)
        # There is no entry if another thread loaded this module during the fork, or if this process is the
        # child of a fork that a signal handler made in the middle of another one.
        lent = under_way.pop() if under_way else {}
        if not under_way:
            _lent.pop(me, None)
        for hold in list(_holds):
            if hold not in lent:
                # Its views were made after `_before_fork` had looked, and before the fork itself.
                hold.keep_for_ever()
        _opening.unwind()


@in_forked_children
def _after_fork_in_child() -> None:
    # This is called again if an exception ends it: what has been done by then is removed from `lent`.
    global _opening
    _opening = InterruptibleLock()
    lent = _lent.get(threading.get_ident(), [{}])[-1]
    for hold in list(_holds):
        if not lent.get(hold) and not hold.is_of_this_process():
            # Its region is never reused, so there is nothing to do when the views go.
            _holds.discard(hold)
    for hold in list(lent):
        # While the exporter is referenced here, the views do not go before the slot has been taken over.
        exporter = hold.exporter() if hold in _holds else None
        if exporter is not None:
            hold.inherit(lent[hold])
            del lent[hold], exporter
            continue
        # The last view went before the fork itself. Removed from `lent` before the slot is given back: given
        # back twice, it might be another process's the second time.
        slot = lent.pop(hold)
        _holds.discard(hold)
        if slot:
            hold.regions.give_back(slot)
    # Last. This includes entries of other threads, which were about to fork, too.
    _lent.clear()


@in_forking_parents
def _let_go() -> None:
    """Release the lock again, in case an interrupt came at the very beginning of the hook before."""
    _opening.unwind()
