"""The queues, locks and counters that this process has open, and how long they stay open.

A process has one `SharedObject` for each file, with one row, however many handles to it there are.

These objects are in reference cycles, so without further measures they would stay open until a garbage
collection. That may come late or never, while each object takes a descriptor and shared memory. So each
handle has a `Lease`, and when the last lease ends, the object is closed at once. Only an object that was
*received* (neither created here nor inherited by a fork) may stay open, *idle*, until some others have become
idle, too: if the next task gets the same queue, that is still open.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Mapping
from typing import TypeVar

from mpkit._platform.hints import Self
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.forks import before_forks, in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._shm.locks import users
from mpkit._shm.locks.participant import Participant
from mpkit._shm.locks.shared_file import OPENING_SECONDS, mark_arrived, mark_exported
from mpkit._shm.memory import names
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import SharedMemoryExhausted

T = TypeVar("T")

#: The names of the idle objects, the one that was used last at the end.
_idle: dict[str, None] = {}
#: How many idle objects are left open (until the next garbage collection at most).
_MOST_IDLE = 16
#: Held while objects are opened, and leases begin or end.
_opening = InterruptibleLock()


class Lease:
    """A handle's share in an object, which is closed when its last lease is dropped."""

    __slots__ = ("_shared",)

    def __init__(self, shared: SharedObject) -> None:
        self._shared = shared

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # When the interpreter is shutting down, globals may be gone. There is no `_shared` if an interrupt
        # came before `__init__` had set it.
        shared = getattr(self, "_shared", None)
        if shared is not None and not _is_finalizing():
            shared.end_lease()


class SharedObject(Participant):
    """One object, as this process has it open; all handles and threads of the process share it."""

    __slots__ = ("_dropped", "_is_received", "_itself", "_leases")

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        # How many leases there are, and whether the last one has ended for good.
        self._leases = 0
        self._dropped = False
        # Whether it was neither created here nor inherited by a fork.
        self._is_received = False
        super().__init__(segment, semaphores)
        # A reference cycle: without it, an object without leases would vanish from `open_here` (which holds
        # weak references) while it is idle, or while it cannot be closed yet.
        self._itself: SharedObject | None = self

    @classmethod
    def create(cls, **options: int) -> Self:
        """Create a new object; `options` are passed to `_format`.

        Raises:
            SharedMemoryExhausted: there is no room. Nothing is left behind.
        """
        try:
            return cls._create(options)
        except SharedMemoryExhausted:
            _make_room()
        return cls._create(options)

    @classmethod
    def _create(cls, options: Mapping[str, int]) -> Self:
        made = cls.form.create(lambda words: cls._format(words, **options), cls)
        _opening.run(users.open_here.__setitem__, made.name, made)
        return made

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:
        """Write the initial values of the words of a new object that are not zero."""

    @classmethod
    def arrive(cls, name: str, export: int) -> tuple[Self, Lease]:
        """For a handle that has arrived: open its object, unless this process has it open already.

        Args:
            name: the path of its file.
            export: what `mark_exported` returned for the handle.

        Returns:
            The object, and a lease for the handle.

        Raises:
            HandleLost: the name is gone.
            SharedMemoryExhausted: this process may not open or map more.
        """
        try:
            return _opening.run(cls._arrive, name, export)
        except SharedMemoryExhausted:
            _make_room()
        return _opening.run(cls._arrive, name, export)

    @classmethod
    def _arrive(cls, name: str, export: int) -> tuple[Self, Lease]:
        known = users.open_here.get(name)
        if isinstance(known, cls):
            # Before anything else, so that the object is not dropped meanwhile (by a finalizer or a signal
            # handler). Also, the handle must count as under way until this process has a lease.
            lease = known._lend()
            if not known.closed and not known._dropped:
                mark_arrived(known.rows, export)
                return known, lease
        found = cls(*cls.form.attach(name))
        found._is_received = True
        # Now and not at the first use, because the row tells the creator that its names are still needed.
        found._join(CLOCK.monotonic() + OPENING_SECONDS)
        # In this order: a thread that sees that the handle is no longer under way must find the object in
        # `open_here`. (If this process is the creator, the table of processes would not show another user.)
        users.open_here[name] = found
        lease = found._lend()
        mark_arrived(found.rows, export)
        return found, lease

    def mark_exported(self) -> int:
        """Record that a handle is being pickled: the names must not be removed before it is unpickled.

        Returns:
            The argument `export` of `arrive`.

        Raises:
            ClosedError: this process has closed the object.
        """
        self.check_open()
        return mark_exported(self.rows)

    def lease(self) -> Lease:
        """A lease for the handle for which the object has just been created."""
        return _opening.run(self._lend)

    def _lend(self) -> Lease:
        self._leases += 1
        _idle.pop(self.name, None)
        return Lease(self)

    def end_lease(self) -> None:
        """A handle has been dropped (in any thread, possibly in the middle of a garbage collection)."""
        # The lock is not waited for, because the thread that has it may be waiting for something that the
        # calling thread holds. Then the object is left to the garbage collection, as after an interrupt.
        ended = _opening.run_within(0, self._take_back)
        dropped = None if ended is None else ended[0]
        if dropped is not None:
            dropped.close()
            dropped._take_apart()

    def _take_back(self) -> SharedObject | None:
        """End a lease, and return the object that is to be closed now, if any."""
        self._leases -= 1
        if self._leases:
            return None
        if not self._is_received or self.closed:
            return self._drop()
        _idle[self.name] = None
        if len(_idle) <= _MOST_IDLE:
            return None
        oldest = next(iter(_idle))
        del _idle[oldest]
        known = users.open_here.get(oldest)
        return known._drop() if isinstance(known, SharedObject) else None

    def _drop(self) -> SharedObject | None:
        """Remove it from `open_here` and return it, to be closed; None if it must stay or was dropped."""
        if self._dropped:
            return None
        try:
            self._refuse_inside()
        except RuntimeError:
            # This thread is in the middle of an operation, although there is no handle any more. The object
            # must be found if a process is forked meanwhile, so it is left to the garbage collection.
            return None
        # In a single step, because a signal handler in between could begin another lease.
        self._dropped = not self._leases
        if not self._dropped:
            return None
        # If it was closed before, another object may have taken its place.
        if users.open_here.get(self.name) is self:
            del users.open_here[self.name]
        return self

    def _take_apart(self) -> None:
        """Break its reference cycles, now that it is closed and unused, so that it is freed at once."""
        self._itself = None
        for lock in self.locks:
            lock.take_apart()


def while_nobody_opens(name: str, look: Callable[[object], T]) -> T:
    """Call `look` with the object that this process has open under that name, or None.

    Until it has returned, no other thread of this process opens an object.
    """
    return _opening.run(lambda: look(users.open_here.get(name)))


def _make_room() -> None:
    """When a resource of the system has run out: free what objects that are no longer used still occupy."""
    # Idle objects, and those that could not be closed when they were dropped.
    gc.collect()
    # And the names of dropped objects that were still in use elsewhere, without waiting for their next check.
    names.remove_unneeded()


def _all_open() -> list[SharedObject]:
    # Not by `values()`, which fails if another thread adds or removes an object meanwhile.
    found = [reference() for reference in users.open_here.valuerefs()]
    return [one for one in found if isinstance(one, SharedObject)]


@before_forks
def _prepare_fork() -> None:
    # Deferred: an exception from a hook is lost, and an interrupt would leave a mark that is never dropped.
    with deferred_interrupts():
        for shared in _all_open():
            shared.prepare_fork()


@in_forked_children
def _forget_after_fork() -> None:
    global _opening
    _opening = InterruptibleLock()
    for shared in _all_open():
        shared.forget_after_fork()
