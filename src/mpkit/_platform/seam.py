"""Every private name of the standard library that mpkit needs stands in this file, and in no other.

`tests/unit/platform/test_seam.py` is its canary: it says which name is gone, or behaves otherwise, in a new
Python. What is used, and why there is no public way:

- ``_multiprocessing.SemLock``: `multiprocessing.Semaphore` cannot be opened by name, and its `acquire` is a
  Python method, several times slower than the one of the C class.
- ``multiprocessing.resource_tracker``: it has no public registration.
- ``multiprocessing.util.Finalize`` with a negative priority: `atexit` runs before multiprocessing has joined
  its children, or after, as the modules happened to be imported.
- ``reduction.DupFd``, ``util.spawnv_passfds``, ``spawn.get_executable``: undocumented, and what a descriptor
  needs to reach a child of any start method.
- ``ForkingPickler._extra_reducers``: its public `dumps` makes a new pickler class instance with two
  dictionary copies for each object, and cannot pickle out of band.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import reduction, spawn, util
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol

if TYPE_CHECKING:

    class SemLock:
        """The part of ``_multiprocessing.SemLock`` that mpkit uses; not every checker knows it."""

        def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool, /) -> None: ...
        def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool: ...
        def release(self) -> None: ...
        def _count(self) -> int: ...
        def _is_mine(self) -> bool: ...
        @classmethod
        def _rebuild(cls, handle: int, kind: int, maxvalue: int, name: str | None, /) -> SemLock: ...

    def _sem_unlink(name: str, /) -> None: ...

else:
    from _multiprocessing import SemLock

    if sys.platform != "win32":
        from _multiprocessing import sem_unlink as _sem_unlink

__all__ = [
    "SEMAPHORE_KIND",
    "PassedDescriptor",
    "SemLock",
    "TrackedType",
    "at_exit_after_children_joined",
    "extra_reducers",
    "pass_descriptor",
    "python_executable",
    "rebuild_semaphore",
    "sem_unlink",
    "spawn_passing",
    "track",
    "untrack",
]

# --- semaphores -------------------------------------------------------------------------------------------

SEMAPHORE_KIND: Final = 1
"""The `kind` argument of `SemLock` for a counting semaphore (0 is a recursive mutex)."""


def rebuild_semaphore(name: str, maxvalue: int) -> SemLock:
    """Open a semaphore by its name.

    Raises:
        FileNotFoundError: If the name is gone.
        OSError: On Windows, where multiprocessing's semaphores have no names.
    """
    if sys.platform == "win32":
        raise OSError(
            f"semaphore {name!r} cannot be opened by name: on Windows semaphores travel to children only"
        )
    return SemLock._rebuild(0, SEMAPHORE_KIND, maxvalue, name)


def sem_unlink(name: str) -> None:
    """Remove the name of a semaphore; those who have it open keep it.

    Raises:
        FileNotFoundError: If the name is gone already.
    """
    if sys.platform != "win32":
        _sem_unlink(name)


# --- the resource tracker ---------------------------------------------------------------------------------

TrackedType = Literal["shared_memory", "semaphore"]


def track(name: str, rtype: TrackedType) -> None:
    """Have multiprocessing's resource tracker remove `name` once every process of this application is gone.

    The tracker is a process of its own that outlives a SIGKILL. Names start with a slash.
    """
    if sys.platform != "win32":
        from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

        resource_tracker.register(name, rtype)


def untrack(name: str, rtype: TrackedType) -> None:
    """Take back `track`: the name has been removed."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

        resource_tracker.unregister(name, rtype)


# --- the end of a process ---------------------------------------------------------------------------------


class _ExitCallbacks:
    """What this process has to do once multiprocessing has joined its children at exit."""

    # multiprocessing runs the finalizers with priority 0 and above, then terminates the daemonic children and
    # joins all of them, then runs the others, the highest first. Its own temporary directory goes at -100.
    PRIORITY: Final = -10

    def __init__(self) -> None:
        self._forget()
        # A child that multiprocessing starts drops every finalizer that it finds (those of the parent, under
        # fork; but under forkserver also what was registered while its arguments were unpickled) and then
        # calls these.
        util.register_after_fork(self, _ExitCallbacks._arm)

    def add(self, callback: Callable[[], object]) -> Callable[[], None]:
        if self._pid != os.getpid():
            self._forget()
        number = next(self._numbers)
        self._callbacks[number] = callback
        self._arm()

        def cancel() -> None:
            self._callbacks.pop(number, None)

        return cancel

    def _forget(self) -> None:
        self._pid = os.getpid()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._numbers = itertools.count()
        self._finalizer: util.Finalize | None = None

    def _arm(self) -> None:
        if self._pid == os.getpid() and (self._finalizer is None or not self._finalizer.still_active()):
            self._finalizer = util.Finalize(None, self._run, exitpriority=self.PRIORITY)

    def _run(self) -> None:
        # The last one first. One that raises must not keep the others from running; the error is shown as
        # multiprocessing shows those of its own finalizers.
        while self._pid == os.getpid() and self._callbacks:
            _, callback = self._callbacks.popitem()
            try:
                callback()
            except Exception as error:  # noqa: BLE001
                sys.excepthook(type(error), error, error.__traceback__)


_exit_callbacks = _ExitCallbacks()


def at_exit_after_children_joined(callback: Callable[[], object]) -> Callable[[], None]:
    """Call `callback` at the normal exit of this process, after multiprocessing has joined its children.

    Holds in the main process and in the children of every start method; never runs in a process that was
    forked from the one that asked for it. The last one asked for runs first.

    Returns:
        A function that takes it back.
    """
    return _exit_callbacks.add(callback)


# --- descriptors and programs -----------------------------------------------------------------------------


class PassedDescriptor(Protocol):
    """A file descriptor on its way to a child that is being started."""

    def detach(self) -> int:
        """In the child: the descriptor, from now on the caller's to close."""
        ...


def pass_descriptor(descriptor: int) -> PassedDescriptor:
    """Something to pickle while a child is being started by spawn or forkserver (POSIX)."""
    passed: PassedDescriptor = reduction.DupFd(descriptor)
    return passed


def spawn_passing(command: Sequence[str], descriptors: Sequence[int]) -> int:
    """Start a program that gets these descriptors and the standard streams, no others (POSIX); its pid.

    Unlike `subprocess.Popen` there is no object that must be kept and waited for.
    """
    arguments = [os.fsencode(argument) for argument in command]
    pid: int = util.spawnv_passfds(arguments[0], arguments, descriptors)
    return pid


def python_executable() -> str | None:
    """The interpreter that multiprocessing starts its children with; None where Python is embedded."""
    executable: str | bytes | None = spawn.get_executable()
    return None if executable is None else os.fsdecode(executable)


# --- pickling ---------------------------------------------------------------------------------------------


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """How multiprocessing pickles what `pickle` cannot (connections, sockets, ...): by type, a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
