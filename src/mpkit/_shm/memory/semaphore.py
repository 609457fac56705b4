"""A named semaphore, as thin as it can be: the two C methods of multiprocessing's own semaphore, and who
removes the name.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import sem_lock, tracker
from mpkit._shm.memory import names
from mpkit._shm.memory.names import SHM_DIRECTORY
from mpkit._shm.memory.segment import exhausted
from mpkit.errors import HandleLost

#: The most that a counting semaphore can hold (POSIX guarantees at least this much).
MAX_VALUE = 32767

Acquire = Callable[..., bool]

# Bound early: a module's globals may be gone when the last objects are.
_is_finalizing = sys.is_finalizing


class Semaphore:
    """A counter of permits that processes share; it has no owner and no memory of who took what.

    Attributes:
        acquire: ``acquire(block=True, timeout=None) -> bool``, the C method itself. It lets other threads run
            while it waits and Python signal handlers run in between. ``acquire(False)`` costs half of a
            blocking call.
        release: adds one permit, never blocks; ValueError when the maximum is reached.
        name: what `attach` takes in another process.
    """

    __slots__ = ("_owner_pid", "acquire", "managed", "name", "raw", "release")

    def __init__(self, name: str, raw: sem_lock.SemLock, *, owner_pid: int) -> None:
        self.name: str = name
        self.raw: sem_lock.SemLock = raw
        self._owner_pid = owner_pid
        # Set by an owner that closes it: a garbage collection may come to the semaphore before it comes to
        # the owner.
        self.managed: bool = False
        self.acquire: Acquire = raw.acquire
        self.release: Callable[[], None] = raw.release

    @classmethod
    def create(cls, value: int, maxvalue: int, *, kind: str) -> Semaphore:
        """Create a semaphore with `value` permits of at most `maxvalue`, under a new name.

        Raises:
            SharedMemoryExhausted: the system has no room for another one.
        """
        return cls.create_all([(value, maxvalue)], names.new_name(kind))[0]

    @classmethod
    def create_all(cls, permits: Sequence[tuple[int, int]], segment_name: str) -> list[Semaphore]:
        """Create the semaphores of a segment.

        Args:
            permits: For each, how many permits it has first, and at most.
            segment_name: What they are named after.

        Raises:
            SharedMemoryExhausted: the system has no room for another one. Nothing is left behind.
        """
        new = [names.semaphore_name(segment_name, number) for number in range(len(permits))]
        with deferred_interrupts():
            # First: whenever a kill comes, the resource tracker knows the names.
            names.own_all(new, "semaphore")
            made: list[Semaphore] = []
            try:
                for name, (value, maxvalue) in zip(new, permits, strict=True):
                    raw = sem_lock.SemLock(sem_lock.SEMAPHORE_KIND, value, maxvalue, name, False)
                    made.append(cls(name, raw, owner_pid=os.getpid()))
            except BaseException as error:
                with tracker.in_one_message():
                    for name in new:
                        names.remove(name)
                if isinstance(error, OSError):
                    raise exhausted(error, 32, SHM_DIRECTORY) from error
                raise
            return made

    @classmethod
    def attach(cls, name: str, maxvalue: int) -> Semaphore:
        """Open a semaphore that another process created.

        Raises:
            HandleLost: the name is gone.
        """
        try:
            raw = sem_lock.rebuild_semaphore(name, maxvalue)
        except FileNotFoundError as error:
            raise HandleLost(
                f"semaphore {name!r} is gone: the process that created it has closed it or has exited"
            ) from error
        except OSError as error:
            raise exhausted(error, 0) from error
        return cls(name, raw, owner_pid=0)

    @classmethod
    def private(cls) -> Semaphore:
        """A semaphore with one permit and without a name, for the threads of this process; cheaper to take
        and give than a `threading.Lock`.
        """
        name = names.semaphore_name(names.new_name("private"), 0)
        # The C code removes the name as soon as it has made it, so the tracker has to do it only for a
        # process that is killed just there.
        with deferred_interrupts():
            tracker.track([name], "semaphore")
            try:
                raw = sem_lock.SemLock(sem_lock.SEMAPHORE_KIND, 1, 1, name, True)
            except OSError as error:
                raise exhausted(error, 32, SHM_DIRECTORY) from error
            finally:
                tracker.unregister(name, "semaphore")
        return cls("", raw, owner_pid=0)

    def close(self, segment_name: str = "", in_use: names.InUse | None = None) -> None:
        """In the creator, let go of the name. The semaphore itself goes with the last reference to this
        object.

        Args:
            segment_name: the segment that it belongs to, which `in_use` is asked about.
            in_use: tells whether other processes still need the name; None when nobody does (see
                `names.let_go`).
        """
        # Asked anew: a garbage collection may come right after a fork.
        if self._owner_pid == os.getpid():
            names.let_go(self.name, segment_name, in_use)
            # Last: after an interrupt a second call does the rest.
            self._owner_pid = 0

    def __del__(self) -> None:
        # At the end of the interpreter the exit hook of `names` has removed everything already, and modules
        # are half gone. (Asked last: even that function may be.)
        if getattr(self, "_owner_pid", 0) > 0 and not self.managed and not _is_finalizing():
            self.close()
