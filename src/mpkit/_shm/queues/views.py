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
import sys
import threading
import weakref
from collections.abc import Callable
from types import ModuleType

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.forks import before_forks, in_forked_children, in_forking_parents
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.queues.regions import Regions

#: In the place of a slot: it has been given back.
_GIVEN_BACK = -1
#: So many holds, on average, are looked at whenever views are opened.
_LOOKS = 32
#: In the place of a thread: nobody ends it any more.
_ENDED = 0
#: How long a fork waits for another thread that is just opening views, and such a thread for a fork.
_OPENING_SECONDS = 1.0


class _Hold:
    """One region that this process has views of, or is about to have."""

    __slots__ = ("_enders", "_pid", "_serial", "_slot", "kept", "number", "reference", "regions")

    def __init__(self, regions: Regions, number: int, serial: int) -> None:
        self.regions: Regions = regions
        self.number: int = number
        self._serial = serial
        self._pid = os.getpid()
        # Where this process stands among the borrowers, if it was forked with the views; 0: it has received
        # them itself.
        self._slot = 0
        # The thread that ends it, who comes first, in one step; `_ENDED` when it has.
        self._enders: dict[None, int] = {}
        #: The region is never used again.
        self.kept: bool = False
        self.reference: weakref.ref[object] | None = None

    def exporter(self) -> object:
        """What keeps the views from going as long as one has it; None when they have gone."""
        # Without a reference they are just coming.
        return self if self.reference is None else self.reference()

    def is_over(self) -> bool:
        """Whether there are no views, and never will be."""
        if self.reference is not None:
            return self.reference() is None
        # They were to come, and somebody else has freed the region.
        return not self._slot and not self.regions.is_held(self.number, self._serial)

    def end(self, _reference: object, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """The last view has gone (in any thread, possibly in the middle of a garbage collection: one store,
        no lock).

        May be called again: an interrupt may have come in the middle of it.
        """
        # At the end of the interpreter the modules are half gone, and all globals with them. What a process
        # leaves behind when it ends, others find.
        if _is_finalizing():
            return
        me = threading.get_ident()
        if self._enders.setdefault(None, me) != me:
            # Another thread is at it, or done. The region must not be freed twice: it may be in use again.
            return
        try:
            self._end()
            self._enders[None] = _ENDED
        except BaseException:
            # An interrupt. Whoever comes next does it again, in whatever thread. (One that comes before this
            # block leaves it to this thread.)
            self._enders.clear()
            raise

    def _end(self) -> None:
        if os.getpid() == self._pid:
            slot = self._slot
            if not slot:
                self.regions.let_go(self.number, self._serial)
            elif slot > 0:
                # First: given back twice it might be another's. Should an interrupt come now, the slot is
                # this process's until it ends.
                self._slot = _GIVEN_BACK
                self.regions.give_back(slot)
        # Last: as long as it is there, `_sweep` sees to it.
        _holds.discard(self)

    def lent(self, slot: int) -> None:
        """Before a fork, the views being there: the child has that slot; 0: it has none."""
        if not slot:
            self.keep_for_ever()
        elif not self._slot:
            self.regions.mark_lent(self.number)

    def keep_for_ever(self) -> None:
        """Somebody has views who stands nowhere."""
        if not self.kept:
            if self._slot:
                self.regions.keep_for_ever(self.number)
            else:
                self.regions.pin(self.number)
            self.kept = True

    def is_of_this_process(self) -> bool:
        """Whether it is not what a parent had when it forked."""
        return self._pid == os.getpid()

    def inherit(self, slot: int) -> None:
        """In the child: it has the views, too. Does no harm the second time."""
        self._slot = slot
        self.kept = False
        self._pid = os.getpid()
        # Without descriptors it cannot say who it is: the slot is this process's all the same, until the last
        # view goes.
        with contextlib.suppress(OSError):
            self.regions.arrive(slot)


_holds: set[_Hold] = set()
#: How often views have been opened since all holds were looked at.
_opened = 0
#: What each thread that is about to fork has lent to the child (0: nothing). A list, because a signal handler
#: may fork in the middle of that.
_lent: dict[int, list[dict[_Hold, int]]] = {}
# Taken by whoever opens views, and by whoever forks, from before the fork until after it: so that no views
# come that have not been lent. The same thread may take it twice (a fork in a signal handler).
_opening = InterruptibleLock()


def open_views(
    regions: Regions, mapped: mmap.mmap, number: int, serial: int, parts: tuple[tuple[int, int], ...]
) -> list[memoryview] | None:
    """Views of the parts (offset, length) of the item `serial` in a region held by this process, which
    `mapped` shows; it is free again when all of them are gone.

    None: not now, another thread has been forking for so long. (A hook of the application that runs at forks
    may be waiting for this very thread.)
    """
    import ctypes  # noqa: PLC0415  only who receives big items needs it

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
        # First: should this very thread fork meanwhile (in a signal handler), the child has views as well.
        _holds.add(hold)
        exporter = (ctypes.c_char * end).from_buffer(mapped)
        whole = memoryview(exporter).cast("B")
        views = [whole[offset : offset + length] for offset, length in parts]
        hold.reference = weakref.ref(exporter, hold.end)
    except BaseException:
        # Whoever called frees the region.
        hold.reference = None
        _holds.discard(hold)
        raise
    return views


def _sweep_in_time() -> None:
    """`_sweep`, less often if there are many: a program may have many queues, and keep all it receives."""
    global _opened
    _opened += 1
    if _opened * _LOOKS >= len(_holds):
        _opened = 0
        _sweep()


def _sweep() -> None:
    """End what an interrupt has kept from ending: nobody hears of one that comes in a callback."""
    for hold in list(_holds):
        if hold.is_over():
            hold.end(None)


@before_forks
def _before_fork() -> None:
    # Nobody hears of what a hook raises (an interrupt, say), and the fork comes all the same.
    lent: dict[_Hold, int] = {}
    _lent.setdefault(threading.get_ident(), []).append(lent)
    with deferred_interrupts():
        _opening.acquire(timeout=_OPENING_SECONDS)
        # With its exporter in hand no hold ends meanwhile.
        exporters: dict[_Hold, object] = {}
        for hold in list(_holds):
            if (exporter := hold.exporter()) is None:
                # Another thread is just ending it: there are no views that the child could have.
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
        # None: this module was loaded in the middle of the fork, by another thread; or this is the child of a
        # fork that a signal handler made in the middle of another one.
        lent = under_way.pop() if under_way else {}
        if not under_way:
            _lent.pop(me, None)
        for hold in list(_holds):
            if hold not in lent:
                # Opened between the first look and the fork itself.
                hold.keep_for_ever()
        _opening.unwind()


@in_forked_children
def _after_fork_in_child() -> None:
    # Called again if an exception ends it: what has been seen to by then is not among the lent ones any more.
    global _opening
    _opening = InterruptibleLock()
    lent = _lent.get(threading.get_ident(), [{}])[-1]
    for hold in list(_holds):
        if not lent.get(hold) and not hold.is_of_this_process():
            # Kept for ever: nobody's business any more.
            _holds.discard(hold)
    for hold in list(lent):
        # With that in hand the views do not go before the slot says whose it is.
        exporter = hold.exporter() if hold in _holds else None
        if exporter is not None:
            hold.inherit(lent[hold])
            del lent[hold], exporter
            continue
        # The last view went before the fork itself. First: given back twice the slot might be another's.
        slot = lent.pop(hold)
        _holds.discard(hold)
        if slot:
            hold.regions.give_back(slot)
    # Last: with those of other threads, which were about to fork children of their own.
    _lent.clear()


@in_forking_parents
def _let_go() -> None:
    """Once more, should an interrupt have come at the first step of the hook before."""
    _opening.unwind()
