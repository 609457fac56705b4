"""What this process has open, and until when: the queues, locks and counters that its handles share.

One process has one `SharedObject` for one file, however many handles it has: it has one row.

It knows itself, so without a handle it stays until the next garbage collection. In a program that has many
objects that may be far away, or never come, and each has a descriptor and shared memory. So each handle has a
`Lease`, and when the last of them has gone the object is closed at once. One that was received may wait for
that until some others have been dropped as well: the next task that gets the same queue finds it open.
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

#: The names of those that were received, and have no handle here now; who has had one last at the end.
_idle: dict[str, None] = {}
#: As many are left open (until the next garbage collection).
_MOST_IDLE = 16
_opening = InterruptibleLock()


class Lease:
    """What a handle has of its object; when the last one goes, that is closed."""

    __slots__ = ("_shared",)

    def __init__(self, shared: SharedObject) -> None:
        self._shared = shared

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter globals are gone. It has none if an interrupt came at the very call of
        # `__init__`.
        shared = getattr(self, "_shared", None)
        if shared is not None and not _is_finalizing():
            shared.end_lease()


class SharedObject(Participant):
    """One object as this process has it open; every handle and thread of the process shares it."""

    __slots__ = ("_dropped", "_is_received", "_itself", "_leases")

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        # How many leases there are, and whether the last one has ended for good.
        self._leases = 0
        self._dropped = False
        # Neither created here, nor in a process that this is a fork of.
        self._is_received = False
        super().__init__(segment, semaphores)
        self._itself: SharedObject | None = self

    @classmethod
    def create(cls, **options: int) -> Self:
        """Make a new object; `options` go to `_format`.

        Raises:
            SharedMemoryExhausted: no room; nothing is left behind.
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
        """Write what a new object of this class begins with, where that is not zero."""

    @classmethod
    def arrive(cls, name: str, export: int) -> tuple[Self, Lease]:
        """Open an object that exists, or share what this process has open; and a lease for the handle.

        Args:
            name: of its file.
            export: what `mark_exported` returned for the handle that has arrived.

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
            # First: now it is not dropped any more, should a finalizer or a signal handler drop others. And
            # the handle counts as under way until this process has one that keeps it.
            lease = known._lend()
            if not known.closed and not known._dropped:
                mark_arrived(known.rows, export)
                return known, lease
        found = cls(*cls.form.attach(name))
        found._is_received = True
        # At once, not at the first use: the rows tell the creator that its names are still needed.
        found._join(CLOCK.monotonic() + OPENING_SECONDS)
        # In this order: whoever sees that the handle is not under way any more sees who has it open here. (In
        # the table of processes that would be no other than the creator itself.)
        users.open_here[name] = found
        lease = found._lend()
        mark_arrived(found.rows, export)
        return found, lease

    def mark_exported(self) -> int:
        """A handle is being pickled: until it is unpickled the names must outlive this process's handles.

        Returns:
            What `arrive` takes.
        """
        self.check_open()
        return mark_exported(self.rows)

    def lease(self) -> Lease:
        """For the handle that it has been created for."""
        return _opening.run(self._lend)

    def _lend(self) -> Lease:
        self._leases += 1
        _idle.pop(self.name, None)
        return Lease(self)

    def end_lease(self) -> None:
        """A handle has gone (in any thread, possibly in the middle of a garbage collection)."""
        # Not waited for: who has it may wait for what this very thread has in hand. Then it is left to the
        # garbage collection, as is what an interrupt leaves undone.
        ended = _opening.run_within(0, self._take_back)
        dropped = None if ended is None else ended[0]
        if dropped is not None:
            dropped.close()
            dropped._take_apart()

    def _take_back(self) -> SharedObject | None:
        """Whom nobody needs any more, now that a lease has ended."""
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
        """Take it out of what is open, for the caller to close it; None if it must stay, or has gone."""
        if self._dropped:
            return None
        try:
            self._refuse_inside()
        except RuntimeError:
            # This very thread is still at it, without a handle. It must be found when a process is forked
            # meanwhile, and is left to the garbage collection.
            return None
        # One step: a signal handler in between might be given another lease.
        self._dropped = not self._leases
        if not self._dropped:
            return None
        # Another one may have taken its place, if it was closed before.
        if users.open_here.get(self.name) is self:
            del users.open_here[self.name]
        return self

    def _take_apart(self) -> None:
        """Nobody uses it any more: let it, and its parts, know no more of each other; so they go at once."""
        self._itself = None
        for lock in self.locks:
            lock.take_apart()


def while_nobody_opens(name: str, look: Callable[[object], T]) -> T:
    """Call `look` with what this process has open under that name, or None. Nobody here opens any object
    before it has returned.
    """
    return _opening.run(lambda: look(users.open_here.get(name)))


def _make_room() -> None:
    """The system has none left of something: give back what is left of objects that nobody uses any more."""
    # Those that this process has received, and dropped, and those that could not be closed then.
    gc.collect()
    # And what was still in use elsewhere when it was dropped here, and would be looked at in a minute.
    names.remove_unneeded()


def _all_open() -> list[SharedObject]:
    # Not by `values()`, which fails where another thread opens one or lets one go meanwhile.
    found = [reference() for reference in users.open_here.valuerefs()]
    return [one for one in found if isinstance(one, SharedObject)]


@before_forks
def _prepare_fork() -> None:
    # Nobody hears of what a hook raises, and an interrupt would leave a mark that nobody gives back.
    with deferred_interrupts():
        for shared in _all_open():
            shared.prepare_fork()


@in_forked_children
def _forget_after_fork() -> None:
    global _opening
    _opening = InterruptibleLock()
    for shared in _all_open():
        shared.forget_after_fork()
