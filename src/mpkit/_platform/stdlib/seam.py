"""Where mpkit meets what the standard library does not promise: the private parts of `multiprocessing`.

Other rooms use all of it from here. What has to do with child processes is written in `child_process`,
`child_popen`, `child_launch`, `preparation`, `fork_server` and `tracker_process`, and passed on; what has to
do with signals, in `signal_handlers`. No other file imports a private module of `multiprocessing`
(`tests/architecture/test_house.py` sees to it). Elsewhere stand only:

- methods of the objects that come from here: `SemLock._count` and `_is_zero`; `_is_owned` of the lock that
  `tracker_lock` returns (`mpkit._platform.stdlib.tracker`);
- ``concurrent.futures._base``, on whose `Future` the handle of a task is built (`mpkit.pool._handle`).

`tests/unit/platform/test_seam.py` is its canary: it says which name is gone, or behaves otherwise, in a new
Python. What is used, and why there is no public way:

- ``_multiprocessing.SemLock``: `multiprocessing.Semaphore` cannot be opened by name, and its `acquire` is a
  Python method, several times slower than the one of the C class.
- ``multiprocessing.resource_tracker``: it has no public registration, and none of several names at once
  (`_fd`), dies with its terminal, and before Python 3.14 a fork may leave its lock locked for ever
  (`_at_fork_reinit`).
- ``threading._register_atexit``: `atexit` calls the functions of a program before those that were registered
  earlier, while tasks go on and more can be submitted; `concurrent.futures` itself uses it.
- ``multiprocessing.util.Finalize`` with a negative priority: `atexit` runs before multiprocessing has joined
  its children, or after, as the modules happened to be imported.
- ``reduction.DupFd``, ``util.spawnv_passfds``, ``spawn.get_executable``: undocumented, and what a descriptor
  needs to reach a child of any start method.
- ``BaseProcess._bootstrap``, ``_Popen``, ``_after_fork``, ``process._children`` and the Popen classes: each
  start method has a process class of its own there, which a class with a start method per instance cannot
  inherit from, and they race (see `ChildProcess`).
- ``spawn.get_start_method``: the name by which `multiprocessing.spawn` asks what to tell a child; asking
  settles the application's start method.
- ``RLock._is_owned``: whether this thread has it; nothing public tells.
- ``_socket.socket`` and ``socketpair``: libraries of greenlets put a class of their own in the place of
  `socket.socket`, in the whole process, whose calls wait although they were told not to.
- ``forkserver._forkserver``: its public `set_forkserver_preload` replaces what the application has asked for,
  and does not tell what that was.
- ``ForkingPickler._extra_reducers``: its public `dumps` makes a new pickler class instance with two
  dictionary copies for each object, and cannot pickle out of band.
"""

from __future__ import annotations

import atexit
import contextlib
import itertools
import os
import select
import sys
import threading
from _socket import socket as PlainSocket  # noqa: N812
from collections.abc import Callable, Generator, Mapping, Sequence
from multiprocessing import process, reduction, spawn, util
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias

from mpkit._platform.stdlib.child_launch import gives_way, spawning
from mpkit._platform.stdlib.child_process import (
    ChildProcess,
    call_target,
    code_lost_because,
    exit_code_of,
    identity_of,
    interrupt,
    is_closed,
    is_created_here,
    is_current,
    is_started,
    look_at,
    peak_rss_bytes_of,
    take_back_start,
    target_of,
    wait_for_end_and_code,
)
from mpkit._platform.stdlib.fork_server import start_fork_server
from mpkit._platform.stdlib.preparation import chosen_start_method
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock, is_free

if TYPE_CHECKING:

    class SemLock:
        """The part of ``_multiprocessing.SemLock`` that mpkit uses; not every checker knows it."""

        def __init__(self, kind: int, value: int, maxvalue: int, name: str, unlink: bool, /) -> None: ...
        def acquire(self, block: bool = True, timeout: float | None = None, /) -> bool: ...
        def release(self) -> None: ...
        def _count(self) -> int: ...
        def _is_mine(self) -> bool: ...
        def _is_zero(self) -> bool: ...
        @classmethod
        def _rebuild(cls, handle: int, kind: int, maxvalue: int, name: str | None, /) -> SemLock: ...

    def _sem_unlink(name: str, /) -> None: ...

else:
    from _multiprocessing import SemLock

    if sys.platform != "win32":
        from _multiprocessing import sem_unlink as _sem_unlink

if sys.platform != "win32":
    from _socket import socketpair as plain_socketpair

__all__ = [
    "SEMAPHORE_KIND",
    "ChildProcess",
    "InterruptibleLock",
    "PassedDescriptor",
    "PlainSocket",
    "SemLock",
    "TrackedType",
    "TrackerMessage",
    "at_exit_after_children_joined",
    "at_exit_before_children_joined",
    "at_exit_first",
    "call_target",
    "chosen_start_method",
    "code_lost_because",
    "exit_code_of",
    "extra_reducers",
    "gives_way",
    "identity_of",
    "inheriting",
    "interrupt",
    "is_closed",
    "is_created_here",
    "is_current",
    "is_free",
    "is_started",
    "look_at",
    "pass_descriptor",
    "peak_rss_bytes_of",
    "plain_socketpair",
    "python_executable",
    "rebuild_semaphore",
    "sem_unlink",
    "spawn_passing",
    "spawning",
    "start_fork_server",
    "take_back_start",
    "target_of",
    "tell_tracker",
    "tracker_is_running",
    "tracker_lock",
    "wait_for_end_and_code",
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


TrackerMessage: TypeAlias = tuple[Literal["REGISTER", "UNREGISTER"], str, TrackedType]

#: So many a pipe takes in one piece (none of mpkit's is longer than 80 bytes).
_MESSAGES_AT_ONCE: Final = getattr(select, "PIPE_BUF", 512) // 80


def tell_tracker(messages: Sequence[TrackerMessage]) -> None:
    """Tell multiprocessing's resource tracker of names that come and go; each starts with a slash. See
    `tracker`.

    multiprocessing wakes it for each of them, twice before Python 3.14, and it wants a core then.
    """
    if sys.platform == "win32":
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    start_tracker()
    for begin in range(0, len(messages), _MESSAGES_AT_ONCE):
        some = messages[begin : begin + _MESSAGES_AT_ONCE]
        if not _reaches_tracker("".join([f"{what}:{name}:{rtype}\n" for what, name, rtype in some])):
            # These start another one.
            ways = {"REGISTER": resource_tracker.register, "UNREGISTER": resource_tracker.unregister}
            for what, name, rtype in some:
                ways[what](name, rtype)


def _reaches_tracker(text: str) -> bool:
    """Send it that; false if it has died."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    tracker: Any = vars(resource_tracker)["_resource_tracker"]
    # Without its lock, as it does itself before Python 3.14: the handler of a signal could leave that locked.
    descriptor = tracker._fd
    if descriptor is None:
        return False
    try:
        os.write(descriptor, text.encode("ascii"))
    except OSError:
        return False
    return True


def tracker_is_running() -> bool:
    """Whether this process has a resource tracker, which its children that were spawned have, too."""
    resource_tracker = sys.modules.get("multiprocessing.resource_tracker")
    return resource_tracker is not None and vars(resource_tracker)["_resource_tracker"]._fd is not None


def tracker_lock() -> Any:  # noqa: ANN401  of a class that the versions do not agree on
    """The lock that it holds while a thread talks to it: an RLock from Python 3.11.6 on, a Lock before."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    return vars(resource_tracker)["_resource_tracker"]._lock


@in_forked_children
def _free_tracker_lock() -> None:
    # Another thread of the parent may have been talking to it, which does not exist here and never gives the
    # lock back. Python does this itself from 3.14 on.
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker: Any = None if module is None else vars(module).get("_resource_tracker")
    if tracker is None:
        return
    lock = tracker._lock
    # Where a signal handler has forked in the middle of such a call, this very thread gives it back. (Before
    # 3.11.6 the lock does not know who has it; then the child has a RuntimeError there, and not a hang.)
    if not (hasattr(lock, "_is_owned") and lock._is_owned()):
        lock._at_fork_reinit()


# --- the end of a process ---------------------------------------------------------------------------------


class _ExitCallbacks:
    """What this process has to do once multiprocessing has joined its children at exit."""

    # multiprocessing runs the finalizers with priority 0 and above, then terminates the daemonic children and
    # joins all of them, then runs the others, the highest first. Its own temporary directory goes at -100.
    PRIORITY: Final = -10

    def __init__(self) -> None:
        self.forget()
        # A child that multiprocessing starts drops every finalizer that it finds (those of the parent, under
        # fork; but under forkserver also what was registered while its arguments were unpickled) and then
        # calls these.
        util.register_after_fork(self, _ExitCallbacks._arm)

    def add(self, callback: Callable[[], object]) -> Callable[[], None]:
        number = next(self._numbers)
        self._callbacks[number] = callback
        self._arm()

        def cancel() -> None:
            self._callbacks.pop(number, None)

        return cancel

    def forget(self) -> None:
        """Begin anew: in a fork, what the parent has to do is not for the child."""
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
# At once, not at the first use: several threads of the child may come to that.
in_forked_children(_exit_callbacks.forget)

#: Finalizers of multiprocessing with a higher priority run earlier.
_FIRST_PRIORITY: Final = 101


def at_exit_after_children_joined(callback: Callable[[], object]) -> Callable[[], None]:
    """Call `callback` at the normal exit of this process, after multiprocessing has joined its children.

    Holds in the main process and in the children of every start method; never runs in a process that was
    forked from the one that asked for it. The last one asked for runs first.

    Returns:
        A function that takes it back.
    """
    return _exit_callbacks.add(callback)


def at_exit_first(callback: Callable[[], object]) -> None:
    """Call `callback` at the end of this process, before all else that is to be called there.

    That is before `atexit` and before threads are waited for in a program, and before all other finalizers in
    a child of multiprocessing; in the forks of this process as well. It may be called more than once.
    """
    register: Callable[[Callable[[], object]], object] = getattr(
        threading, "_register_atexit", atexit.register
    )
    try:
        register(callback)
    except RuntimeError:
        # Threads are being waited for already.
        atexit.register(callback)
    # A child of multiprocessing runs these before the above, up to Python 3.12. It drops those that it finds,
    # then calls what was registered for after the fork.
    util.register_after_fork(callback, _finalize_first)
    _finalize_first(callback)


def _finalize_first(callback: Callable[[], object]) -> None:
    util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY)


def at_exit_before_children_joined(callback: Callable[[], object]) -> Callable[[], object]:
    """Call `callback` at the normal exit of this process, before multiprocessing waits for its children.

    For those who have to tell their children to end. It never runs in a process that was forked from the one
    that asked for it.

    Returns:
        A function that takes it back.
    """
    # `atexit` is no place for it: multiprocessing may have registered before or after us.
    return util.Finalize(None, callback, exitpriority=_FIRST_PRIORITY - 1).cancel


# --- descriptors and programs -----------------------------------------------------------------------------


class PassedDescriptor(Protocol):
    """A file descriptor on its way to a child that is being started."""

    def detach(self) -> int:
        """In the child: the descriptor, from now on the caller's to close."""
        ...


def pass_descriptor(descriptor: int) -> PassedDescriptor:
    """Something to pickle while a child is being started by spawn or forkserver (POSIX).

    Raises:
        RuntimeError: If this thread is not starting a child: to a stranger a descriptor means nothing.
    """
    if sys.platform == "win32" or not spawning():
        raise RuntimeError(
            "a file descriptor can be sent to another process only while a child is being started"
        )
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


# --- what is being started ---------------------------------------------------------------------------------


@contextlib.contextmanager
def inheriting() -> Generator[None]:
    """In a child: what is unpickled in this block was pickled while the child was started.

    Managers' proxies want to know it, and so does the check that importing the main module starts no process.
    """
    me: Any = process.current_process()
    me._inheriting = True
    try:
        yield
    finally:
        del me._inheriting


# --- pickling ---------------------------------------------------------------------------------------------


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """How multiprocessing pickles what `pickle` cannot (connections, sockets, ...): by type, a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
