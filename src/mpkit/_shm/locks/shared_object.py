"""What a queue, a lock and a counter have in common: one file, some semaphores, a table of processes, robust
locks.

Every such file begins with the same words, so that whoever finds one can tell what it is and who uses
it::

    word 0   magic: what it is, and the version of its layout; stored last by the creator
    word 1   index of the table of processes
    word 2   capacity of that table
    word 3   rows of it that have ever been used
    word 4   how many locks were taken over from the dead
    word 5   how many handles have been pickled    } under the file lock
    word 6   which of the last 64 are under way    }

A handle is under way until it is unpickled for the first time: it may be unpickled any number of times (the
arguments of an initializer, in each worker), so counting would not do.

One process has one `SharedObject` for one file, however many handles it has: it has one row.

Its parts know each other, so by itself it goes with the next garbage collection. In a program that has many
objects that may be far away, or never come, and each has a descriptor and shared memory. So each handle has a
`Lease`, and when the last of them has gone the object is closed at once. One that was received may wait for
that until some others have been dropped as well: the next task that gets the same queue finds it open.
"""

from __future__ import annotations

import contextlib
import gc
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from typing import ClassVar, TypeVar

from mpkit._platform.files import use_marks
from mpkit._platform.hints import Self
from mpkit._platform.processes import identity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import seam, tracker
from mpkit._platform.threads.deadlines import has_passed, remaining
from mpkit._platform.threads.forks import around_forks
from mpkit._shm.locks import robust_lock
from mpkit._shm.locks.robust_lock import REENTERED, RobustLock
from mpkit._shm.memory import names
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import ClosedError, HandleLost, SharedMemoryExhausted

T = TypeVar("T")

MAGIC, ROWS_AT, ROWS_CAPACITY, ROWS_USED, RECOVERIES, EXPORTS, UNDER_WAY = range(7)
#: How long opening a handle may wait for a process that was stopped while it had the file lock.
_OPENING_SECONDS = 5.0
#: As many handles are known by their number while they are under way.
_NUMBERS = 64
#: "mpkit" in ASCII, the version of all layouts, and room for the kind.
MAGIC_BASE = 0x6D706B6974 << 16 | 1 << 8


_open_objects: weakref.WeakValueDictionary[str, SharedObject] = weakref.WeakValueDictionary()
#: The names of those that were received, and have no handle here now; who has had one last at the end.
_idle: dict[str, None] = {}
#: As many are left open (until the next garbage collection).
_MOST_IDLE = 16
_opening = seam.InterruptibleLock()


def while_nobody_opens(name: str, look: Callable[[SharedObject | None], T]) -> T:
    """Call `look` with what this process has open under that name, or None. Nobody here opens any object
    before it has returned.
    """
    return _opening.run(lambda: look(_open_objects.get(name)))


class Form:
    """What the file of one kind of object looks like; each kind has a class of its own."""

    kind: str
    """A word for the file's name."""
    magic: int
    file_bytes: int
    reserved_bytes: int
    rows_at: int
    rows_capacity: int
    semaphores: tuple[tuple[int, int], ...]
    """First value and maximum of each semaphore; the first `locks` are the permits of robust locks."""
    locks: int
    noun: str
    """What users call it."""


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


class SharedObject:
    """One object as this process has it open; every handle and thread of the process shares it."""

    __slots__ = (
        "__weakref__",
        "_closing",
        "_dropped",
        "_forked",
        "_is_received",
        "_joining_or_closing",
        "_leases",
        "_left",
        "_marks",
        "_process",
        "_row",
        "closed",
        "locks",
        "name",
        "rows",
        "segment",
        "semaphores",
        "words",
    )

    form: ClassVar[type[Form]]

    def __init__(self, segment: Segment, semaphores: list[Semaphore]) -> None:
        form = self.form
        self.closed: bool = False  # no later use
        self._row = 0
        # Whose the row is, and the threads that are inside.
        self._process = os.getpid()
        self._left = False  # closed to the end
        # How many leases there are, and whether the last one has ended for good.
        self._leases = 0
        self._dropped = False
        # Neither created here, nor in a process that this is a fork of.
        self._is_received = False
        self._joining_or_closing = seam.InterruptibleLock()
        # Whether a child has been forked from the process that created it; and marks on the file that tell
        # whether any of those children still has it open.
        self._forked = False
        self._marks: list[int] = []
        # The threads that are about to close it.
        self._closing: set[int] = set()
        self.name: str = segment.name
        self.segment: Segment = segment
        self.semaphores: list[Semaphore] = semaphores
        self.words: memoryview[int] = segment.words
        # Only `close` knows whether anybody else still needs the names.
        segment.managed = True
        for semaphore in semaphores:
            semaphore.managed = True
        self.rows: Rows = Rows(
            segment,
            start=form.rows_at,
            capacity=form.rows_capacity,
            used_at=ROWS_USED,
            must_stay=self._must_stay,
        )
        self.locks: list[RobustLock] = [
            RobustLock(self.rows, number, semaphores[number], recoveries_at=RECOVERIES, join=self._join)
            for number in range(form.locks)
        ]

    def _must_stay(self, row: int) -> bool:  # noqa: ARG002  of a lock it matters
        """Whether the row of a dead process at word `row` is still needed."""
        return False

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
        form = cls.form
        segment = Segment.create(form.file_bytes, kind=form.kind, reserved=form.reserved_bytes)
        semaphores: list[Semaphore] = []
        try:
            semaphores = Semaphore.create_all(form.semaphores, segment.name)
            words = segment.words
            words[ROWS_AT] = form.rows_at
            words[ROWS_CAPACITY] = form.rows_capacity
            cls._format(words, **options)
            words[MAGIC] = form.magic
            made = cls(segment, semaphores)
        except BaseException:
            for semaphore in semaphores:
                semaphore.close()
            segment.close()
            raise
        _opening.run(_open_objects.__setitem__, made.name, made)
        return made

    @classmethod
    def _format(cls, words: memoryview[int], **options: int) -> None:  # noqa: ARG003  subclasses use them
        """Write what a new object of this class begins with."""
        raise TypeError(f"{cls.__name__} cannot be created")

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
        form = cls.form
        known = _open_objects.get(name)
        if isinstance(known, cls):
            # First: now it is not dropped any more, should a finalizer or a signal handler drop others. And
            # the handle counts as under way until this process has one that keeps it.
            lease = known._lend()
            if not known.closed and not known._dropped:
                known._mark_arrived(export)
                return known, lease
        segment = Segment.attach(name, form.file_bytes)
        if segment.words[MAGIC] != form.magic:
            raise HandleLost(
                f"{name!r} is no {form.noun} of this version of mpkit, or its creator died making it"
            )
        semaphores = [
            Semaphore.attach(names.semaphore_name(name, number), maximum)
            for number, (_, maximum) in enumerate(form.semaphores)
        ]
        found = cls(segment, semaphores)
        found._is_received = True
        # At once, not at the first use: the rows tell the creator that its names are still needed.
        found._join(time.monotonic() + _OPENING_SECONDS)
        # In this order: whoever sees that the handle is not under way any more sees who has it open here. (In
        # the table of processes that would be no other than the creator itself.)
        _open_objects[name] = found
        lease = found._lend()
        found._mark_arrived(export)
        return found, lease

    def mark_exported(self) -> int:
        """A handle is being pickled: until it is unpickled the names must outlive this process's handles.

        Returns:
            Its number, for `arrive`; -1 if a stopped process keeps this one from giving it one, which only
            makes the names go sooner.
        """
        self.check_open()
        words = self.words
        with self.rows.exclusive(time.monotonic() + _OPENING_SECONDS) as alone:
            if not alone:
                return -1
            number = words[EXPORTS]
            words[UNDER_WAY] |= 1 << number % _NUMBERS
            words[EXPORTS] = number + 1
        return number

    def _mark_arrived(self, number: int) -> None:
        bit = 1 << number % _NUMBERS
        # Looked at first: most often it has arrived before, or everybody is a child of a fork.
        words = self.words
        if number < 0 or not words[UNDER_WAY] & bit:
            return
        with self.rows.exclusive(time.monotonic() + _OPENING_SECONDS) as alone:
            # Else its place is another's by now: it arrives for the second time, or very late.
            if alone and words[EXPORTS] - number <= _NUMBERS:
                words[UNDER_WAY] &= ~bit

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
        known = _open_objects.get(oldest)
        return None if known is None else known._drop()

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
        if _open_objects.get(self.name) is self:
            del _open_objects[self.name]
        return self

    def _take_apart(self) -> None:
        """Nobody uses it any more: let its parts know no more of each other, so that they go at once."""
        for lock in self.locks:
            lock.take_apart()
        self.rows.take_apart()

    def check_open(self) -> None:
        """Raise ClosedError if this process has closed the object."""
        if self.closed:
            raise ClosedError(f"this {self.form.noun} is closed in this process")

    def recoveries(self) -> int:
        """How many locks were taken over from dead processes."""
        return self.words[RECOVERIES]

    def close(self) -> None:
        """Leave the object: operations of other threads that are under way end first, later ones raise
        ClosedError.

        Raises:
            RuntimeError: called from inside an operation of this very thread (a signal handler).
        """
        if self._process != os.getpid():
            # In a child a garbage collection has come before the hook for forks: the locks between threads
            # are the parent's as well, and each process would wait for the other.
            self.forget_after_fork()
        self._refuse_inside()
        lock = self._joining_or_closing
        me = threading.get_ident()
        try:
            # First: a thread that has it may wait for as long as a stopped process stays stopped.
            self._closing.add(me)
            lock.acquire()
            self._close()
            lock.release()
        except BaseException:
            try:
                # What an interrupt has left half done is ended first.
                if lock.is_owned():
                    self._close()
                lock.unwind()
            finally:
                lock.unwind()
            raise
        finally:
            self._closing.discard(me)

    def _close(self) -> None:
        """Each step does nothing the second time, so that after an interrupt the whole can be done again."""
        if self._left:
            return
        deadline = time.monotonic() + robust_lock.SHUT_SECONDS
        outside = [lock.begin_to_shut(deadline) for lock in self.locks]
        self.closed = True
        for lock, is_outside in zip(self.locks, outside, strict=True):
            lock.shut(outside=is_outside)
        in_use = in_use_elsewhere if self._may_be_in_use() else None
        self._leave(outside=all(outside))
        self._close_more()
        with tracker.in_one_message():
            self.segment.close(in_use)
            for semaphore in self.semaphores:
                semaphore.close(self.name, in_use)
        self._left = True

    def _may_be_in_use(self) -> bool:
        """Whether another process has the object open, or a handle of it may be under way to one."""
        marked = self._drop_marks()
        # A child that was forked has no row before its first use. Where no mark tells of it, it may be there.
        if self.segment.closed or (self._forked and not marked):
            return True
        return _is_in_use(self.name, self.segment, self.rows, under_way=True, besides=self)

    def _drop_marks(self) -> bool:
        """Give back this process's copies of the marks; whether there were any."""
        dropped = False
        # IndexError: several threads may be at it. OSError: somebody has closed what is not his.
        with deferred_interrupts(), contextlib.suppress(IndexError, OSError):
            while True:
                mark = self._marks.pop()
                dropped = True
                os.close(mark)
        return dropped

    def _leave(self, *, outside: bool) -> None:
        """Give the row back."""
        # First it is forgotten: given back twice it might be another's the second time.
        row, self._row = self._row, 0
        # A thread that is still inside may come to hold the lock: only its row lets the others know.
        if row and outside:
            self.rows.leave(row)

    def _close_more(self) -> None:
        """What a subclass has to let go of as well."""

    def _join(self, deadline: float | None) -> bool:
        """Have this process take part; called by a slow path where it does not.

        Raises:
            ClosedError: this process has closed the object.
            RuntimeError: this very thread is in the middle of joining or closing (a signal handler has come
                in between).
        """
        self._refuse_reentry()
        joined = self._joining_or_closing.run_within(remaining(deadline), self._join_if_open, deadline)
        return joined is not None and joined[0]

    def _join_if_open(self, deadline: float | None) -> bool:
        while True:
            self.check_open()
            if self._row:
                return True
            # In slices: whoever wants to close waits for this thread.
            slice_ends = time.monotonic() + robust_lock.SHUT_SLICE_SECONDS
            if self._take_row(slice_ends if deadline is None else min(slice_ends, deadline)):
                return True
            if self._closing:
                raise ClosedError(f"this {self.form.noun} is just being closed in this process")
            if has_passed(deadline):
                return False

    def _refuse_reentry(self) -> None:
        if self._joining_or_closing.is_owned():
            raise RuntimeError(REENTERED)

    def _refuse_inside(self) -> None:
        """Raise RuntimeError if this very thread is in the middle of an operation."""
        self._refuse_reentry()
        for lock in self.locks:
            lock.refuse_reentry()

    def _take_row(self, deadline: float | None) -> bool:
        """Give this process a row and open the locks."""
        row = self.rows.join(deadline)
        if row < 0:
            return False
        try:
            for lock in self.locks:
                lock.open(row)
        except BaseException:
            # No room for the locks between threads: the row must not be lost with every try.
            for lock in self.locks:
                lock.shut()
            self.rows.leave(row)
            raise
        self._row = row
        return True

    def prepare_fork(self) -> None:
        """Before a fork: the child is going to have the object open as well, and the creator shall know."""
        if self.segment._owner_pid != os.getpid():
            return
        self._forked = True
        if not self._marks:
            with contextlib.suppress(OSError):
                # Two threads that fork at the same time make one each, which does no harm.
                self._marks.append(use_marks.mark_of_its_own(self.segment.fd))
        if self.closed:
            # By another thread, perhaps meanwhile.
            self._drop_marks()

    def forget_after_fork(self) -> None:
        """In the child: the row is the parent's, and threads that do not exist here may have held
        anything.
        """
        self._process = os.getpid()
        self._joining_or_closing = seam.InterruptibleLock()
        self._closing = set()
        self._row = 0
        if not self.closed:
            for lock in self.locks:
                lock.forget()

    def __del__(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        # At the end of the interpreter the exit hook of `names` has removed everything, and modules are half
        # gone.
        if not _is_finalizing() and not getattr(self, "_left", True) and hasattr(self, "locks"):
            self.close()


def in_use_elsewhere(name: str, *, under_way: bool = False) -> bool:
    """Whether a living process has the object in the file `name` open or, if `under_way`, a handle to it may
    be under way to one. So it counts while this process has no descriptor or memory left to look.
    """
    if _is_open_here(name):
        return True
    try:
        segment = Segment.attach(name)
    except (HandleLost, ValueError):
        return False
    except OSError:
        return True
    try:
        words = segment.words
        rows = Rows(segment, start=words[ROWS_AT], capacity=words[ROWS_CAPACITY], used_at=ROWS_USED)
        return _is_in_use(name, segment, rows, under_way=under_way)
    finally:
        segment.close()


def _is_in_use(
    name: str, segment: Segment, rows: Rows, *, under_way: bool, besides: SharedObject | None = None
) -> bool:
    words = segment.words
    # Looked at first and last: who had it open, and has sent it on and closed it meanwhile, may be seen
    # neither here nor there.
    exports = words[EXPORTS]
    return (
        (under_way and words[UNDER_WAY] != 0)
        or _others(rows)
        # A child that was forked.
        or use_marks.is_marked(segment.fd)
        # A handle may have arrived here meanwhile.
        or _is_open_here(name, besides)
        or words[EXPORTS] != exports
    )


def _is_open_here(name: str, besides: SharedObject | None = None) -> bool:
    """Whether this process has the object in that file open, as another one than `besides`."""
    known = _open_objects.get(name)
    return known is not None and known is not besides and not known.closed


def _make_room() -> None:
    """The system has none left of something: give back what is left of objects that nobody uses any more."""
    # Those that this process has received, and dropped, and those that could not be closed then.
    gc.collect()
    # And what was still in use elsewhere when it was dropped here, and would be looked at in a minute.
    names.remove_unneeded()


def _others(rows: Rows) -> bool:
    me = identity.current()
    return any(process != me and identity.is_alive(process) for _, process in rows.taken())


def _all_open() -> list[SharedObject]:
    # Not by `values()`, which fails where another thread opens one or lets one go meanwhile.
    return [one for reference in _open_objects.valuerefs() if (one := reference()) is not None]


def _prepare_fork() -> None:
    # Nobody hears of what a hook raises, and an interrupt would leave a mark that nobody gives back.
    with deferred_interrupts():
        for shared in _all_open():
            shared.prepare_fork()


def _go_on() -> None:
    """In the parent there is nothing to be done."""


def _forget_after_fork() -> None:
    global _opening
    _opening = seam.InterruptibleLock()
    for shared in _all_open():
        shared.forget_after_fork()


around_forks(_prepare_fork, _go_on, _forget_after_fork)
