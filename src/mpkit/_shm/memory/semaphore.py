"""A named semaphore: a thin layer over the semaphore of multiprocessing that also manages the name."""

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

# Bound early: when the last objects are finalized, a module's globals may be gone.
_is_finalizing = sys.is_finalizing


class Semaphore:
    """A number of permits that processes share. It has no owner, and does not remember who took a permit.

    Attributes:
        acquire: ``acquire(block=True, timeout=None) -> bool``, the C method itself. While it waits, other
            threads run, and so do Python's signal handlers. ``acquire(False)`` costs half of a blocking call.
        release: adds one permit, never blocks; ValueError when the maximum is reached.
        name: the argument for `attach` in another process; "" if it has no name.
        raw: the semaphore of multiprocessing.
        managed: set by an object that closes this one; then `__del__` does not, because a garbage collection
            may finalize the semaphore before that object.
    """

    __slots__ = ("_owner_pid", "acquire", "managed", "name", "raw", "release")

    def __init__(self, name: str, raw: sem_lock.SemLock, *, owner_pid: int) -> None:
        self.name: str = name
        self.raw: sem_lock.SemLock = raw
        self.managed: bool = False  # before `_owner_pid`, with which `__del__` reads it
        self._owner_pid = owner_pid
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
            permits: for each semaphore, the initial and the maximal number of permits.
            segment_name: the name from which theirs are derived.

        Raises:
            SharedMemoryExhausted: the system has no room for another one. Nothing is left behind.
        """
        new = [names.semaphore_name(segment_name, number) for number in range(len(permits))]
        with deferred_interrupts():
            # Before they are created, so that the resource tracker knows the names whenever a kill comes.
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
        """Open a semaphore that another process has created.

        Raises:
            HandleLost: the name is gone.
            SharedMemoryExhausted: this process may not open or map more.
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
        """Create a semaphore with one permit and no name, for the threads of this process.

        It is cheaper to acquire and release than a `threading.Lock`.

        Raises:
            SharedMemoryExhausted: the system has no room for another one.
        """
        name = names.semaphore_name(names.new_name("private"), 0)
        # The C code removes the name right after creating it. The tracker is told of it for the case that the
        # process is killed in between.
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
        """Let go of the name, in the creator. The semaphore itself stays usable as long as this object lives.

        Args:
            segment_name: the segment that it belongs to, the argument for `in_use`.
            in_use: tells whether other processes still need the name; None when nobody does (see
                `names.let_go`).
        """
        # Not a cached pid: a garbage collection may close this right after a fork, in the child.
        if self._owner_pid == os.getpid():
            names.let_go(self.name, segment_name, in_use)
            # Last, so that after an interrupt a second call completes the work.
            self._owner_pid = 0

    def __del__(self) -> None:
        # When the interpreter is shutting down, the exit hook of `names` has removed everything already, and
        # modules are half gone. (Called last: even this function may be gone.)
        if getattr(self, "_owner_pid", 0) > 0 and not self.managed and not _is_finalizing():
            self.close()
