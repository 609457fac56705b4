"""Where mpkit meets what the standard library does not promise: the private parts of `multiprocessing`.

No other file imports a module of those (`tests/architecture/test_house.py` sees to it). Elsewhere stand only:

- methods of the objects that come from here: `SemLock._count` and `_is_zero`; `_is_owned` of the lock that
  `tracker_lock` returns (`mpkit._platform.tracker`);
- ``concurrent.futures._base``, on whose `Future` the handle of a task is built (`mpkit.pool._handle`).

`tests/unit/platform/test_seam.py` is its canary: it says which name is gone, or behaves otherwise, in a new
Python. What is used, and why there is no public way:

- ``_multiprocessing.SemLock``: `multiprocessing.Semaphore` cannot be opened by name, and its `acquire` is a
  Python method, several times slower than the one of the C class.
- ``multiprocessing.resource_tracker``: it has no public registration.
- ``multiprocessing.util.Finalize`` with a negative priority: `atexit` runs before multiprocessing has joined
  its children, or after, as the modules happened to be imported.
- ``reduction.DupFd``, ``util.spawnv_passfds``, ``spawn.get_executable``: undocumented, and what a descriptor
  needs to reach a child of any start method.
- ``BaseProcess._bootstrap``, ``_Popen``, ``_after_fork``, ``process._children`` and the Popen classes: each
  start method has a process class of its own there, which a class with a start method per instance cannot
  inherit from, and they race (see `ChildProcess`).
- ``spawn.get_start_method``: the name by which `multiprocessing.spawn` asks what to tell a child; asking
  settles the application's start method.
- ``_signal``: the functions of `signal` turn its numbers into enumerations, which costs ten times as much as
  the system call (11 us to keep interrupts from one block on Python 3.10).
- ``RLock._is_owned``: whether this thread has it; nothing public tells.
- ``forkserver._forkserver``: its public `set_forkserver_preload` replaces what the application has asked for,
  and does not tell what that was.
- ``ForkingPickler._extra_reducers``: its public `dumps` makes a new pickler class instance with two
  dictionary copies for each object, and cannot pickle out of band.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import multiprocessing
import multiprocessing.context as mp_context
import operator
import os
import signal
import struct
import sys
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from multiprocessing import connection, process, reduction, spawn, util
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Protocol, TypeVar, cast

from mpkit._platform import families, identity
from mpkit._platform.deadlines import deadline_of, remaining
from mpkit._platform.hints import override
from mpkit._platform.identity import ProcessIdentity
from mpkit.errors import ClosedError

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

    import signal as _signal
else:
    import _signal
    from _multiprocessing import SemLock

    if sys.platform != "win32":
        from _multiprocessing import sem_unlink as _sem_unlink

__all__ = [
    "SEMAPHORE_KIND",
    "ChildProcess",
    "PassedDescriptor",
    "SemLock",
    "TrackedType",
    "at_exit_after_children_joined",
    "at_exit_before_children_joined",
    "extra_reducers",
    "get_signal_handler",
    "inheriting",
    "pass_descriptor",
    "python_executable",
    "rebuild_semaphore",
    "sem_unlink",
    "set_signal_handler",
    "spawn_passing",
    "spawning",
    "start_fork_server",
    "tracker_lock",
    "tracker_register",
    "tracker_unregister",
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


def tracker_register(name: str, rtype: TrackedType) -> None:
    """Tell multiprocessing's resource tracker of a name, which starts with a slash. See `tracker`."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

        resource_tracker.register(name, rtype)


def tracker_unregister(name: str, rtype: TrackedType) -> None:
    """Tell it that a name is gone."""
    if sys.platform != "win32":
        from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

        resource_tracker.unregister(name, rtype)


def tracker_lock() -> Any:  # noqa: ANN401  of a class that the versions do not agree on
    """The lock that it holds while a thread talks to it: an RLock from Python 3.11.6 on, a Lock before."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    return vars(resource_tracker)["_resource_tracker"]._lock


# --- signals ----------------------------------------------------------------------------------------------

get_signal_handler: Callable[[int], object] = _signal.getsignal
set_signal_handler: Callable[[int, object], object] = cast("Any", _signal.signal)


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


def at_exit_before_children_joined(callback: Callable[[], object]) -> Callable[[], object]:
    """Call `callback` at the normal exit of this process, before multiprocessing waits for its children.

    For those who have to tell their children to end. It never runs in a process that was forked from the one
    that asked for it.

    Returns:
        A function that takes it back.
    """
    # `atexit` is no place for it: multiprocessing may have registered before or after us.
    return util.Finalize(None, callback, exitpriority=100).cancel


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
    if not spawning():
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


# --- child processes ---------------------------------------------------------------------------------------


class ChildProcess(process.BaseProcess):
    """A process of multiprocessing with a start method of its own, that is waited for exactly.

    What multiprocessing's own classes get wrong, and this one does not:

    - two threads that ask for the exit code at the same time (starting a process asks every other one) take
      it away from each other: one of them sees None, or under forkserver 255;
    - with fork, the sentinel does not become ready while a grandchild lives (here it does, on Linux 5.3 and
      later);
    - under forkserver, a child whose server has been killed counts as dead while it lives;
    - a signal may be sent to a pid that is another process's by now.

    Args:
        start_method: The name of a start method that this system has; at the latest it is set before the
            start.
    """

    def __init__(
        self,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        daemon: bool | None = None,
        start_method: str = "",
    ) -> None:
        super().__init__(None, target, name, args, kwargs or {}, daemon=daemon)
        self._start_method = start_method

    def _check_closed(self) -> None:
        # Called by nearly every method of the base class.
        if is_closed(self):
            raise ClosedError(
                "this process handle is closed; keep it open for as long as you ask it for anything"
            )

    @override
    def close(self) -> None:
        """Let go of what this handle holds in the system. Twice does no harm.

        Raises:
            ValueError: If the process is still running.
        """
        its = vars(self)
        popen = its["_popen"]
        if popen is not None and not is_closed(self):
            if popen.poll() is None:
                raise ValueError(f"cannot close {self!r} while it is still running; join or stop it first")
            cast("set[object]", vars(process)["_children"]).discard(self)
            popen.close()
            del its["_sentinel"]
        # `_popen` stays, unlike in the base class: another thread that is inside `active_children` (whoever
        # starts a process goes through it) may have seen this process before it was discarded, and older
        # Pythons (3.10) ask it for its exit code without looking. An ended one answers from memory.
        its["_closed"] = True

    @staticmethod
    def _Popen(child: ChildProcess) -> object:  # noqa: N802  multiprocessing calls it so
        popen = _popen_class(child._start_method)
        if child._start_method == "fork":
            return popen(child)
        with _starting_by(child._start_method):
            return popen(child)

    def _after_fork(self) -> None:
        # A spawned child has not forked: what is registered there has been registered by itself.
        if self._start_method != "spawn":
            super()._after_fork()  # type: ignore[misc]

    def _bootstrap(self, parent_sentinel: object = None) -> int:
        self._arrived()
        # `run` is called by what follows, its return value dropped; an attribute of this object comes before
        # its class.
        vars(self)["run"] = functools.partial(self._perform, self.run)
        return cast("int", super()._bootstrap(parent_sentinel))  # type: ignore[misc]

    # For subclasses; with an underscore, because users derive from those and choose names of their own.

    def _arrived(self) -> None:
        """In the child: called first."""

    def _perform(self, run: Callable[[], object]) -> None:
        """In the child: called in place of `run`, which it has to call."""
        run()


def is_started(child: ChildProcess) -> bool:
    """Whether it has been started, and neither closed nor brought here from the process that did."""
    return vars(child).get("_popen") is not None and not is_closed(child)


def is_closed(child: ChildProcess) -> bool:
    """Whether `close` was called."""
    return bool(vars(child)["_closed"])


def is_current(child: ChildProcess) -> bool:
    """Whether this very process is it."""
    return child is process.current_process()


def is_created_here(child: ChildProcess) -> bool:
    """Whether this process created it: only its creator may start it and wait for it."""
    return bool(vars(child)["_parent_pid"] == os.getpid())


def identity_of(child: ChildProcess) -> ProcessIdentity | None:
    """Which process it is; None before the start, and if it had ended before it could be looked at."""
    return getattr(vars(child).get("_popen"), "identity", None)


def look_at(child: ChildProcess) -> ProcessIdentity | None:
    """Which process it is, right after the start; None if it has ended already.

    Raises:
        OSError: If that cannot be told, for want of a descriptor, say.
    """
    return identity_of(child) or identity.look(cast("int", child.pid))


def peak_rss_bytes_of(child: ChildProcess) -> int | None:
    """The largest resident memory it had, once it has ended, as far as the system tells; else None."""
    return getattr(vars(child).get("_popen"), "peak_rss_bytes", None)


def target_of(child: ChildProcess) -> tuple[object, tuple[object, ...], dict[str, object]]:
    """What it is to call, with which arguments; only before the start."""
    its = vars(child)
    return its["_target"], its["_args"], its["_kwargs"]


def take_back_start(
    child: ChildProcess, target: tuple[object, tuple[object, ...], dict[str, object]]
) -> None:
    """Kill a child that has just been started, and forget that it was.

    Args:
        child: The process.
        target: What `target_of` told before the start, which has dropped it.

    Blocking: until it has ended.
    """
    its = vars(child)
    popen = its["_popen"]
    popen.kill()
    popen.wait()
    popen.close()
    cast("set[object]", vars(process)["_children"]).discard(child)
    its["_target"], its["_args"], its["_kwargs"] = target
    del its["_sentinel"]
    its["_popen"] = None


def call_target(child: ChildProcess) -> object:
    """In the child: call the target, if there is one, and return what it returns."""
    target, args, kwargs = vars(child)["_target"], vars(child)["_args"], vars(child)["_kwargs"]
    return target(*args, **kwargs) if target else None


def interrupt(child: ChildProcess) -> None:
    """Send SIGINT to a child that has been started (before Python 3.14 there is no method for it)."""
    popen = vars(child)["_popen"]
    # On Windows there is no way to interrupt one process alone.
    (popen.terminate if sys.platform == "win32" else popen.interrupt)()


def chosen_start_method() -> str | None:
    """What the application has set as its start method, or settled by using it; None while it has not."""
    # What typeshed does not know: None as long as nobody has set or used a start method.
    return cast("str | None", multiprocessing.get_start_method(allow_none=True))


class _BeingStarted(threading.local):
    """The start method of the child that this thread is just starting."""

    method: str | None = None


_being_started = _BeingStarted()


@contextlib.contextmanager
def _starting_by(method: str) -> Generator[None]:
    """What is started in this block, in this thread, settles nothing for the application.

    Starting a process by spawn or forkserver tells it the application's start method, and asking for that
    settles it (before 3.14) on the default of the running Python. So where the application has none, the
    child is told its own: with that, importing a main module that starts processes without
    `if __name__ == "__main__"` is an error in the child, as it should be, and does not do everything twice.
    """
    spawn: Any = importlib.import_module("multiprocessing.spawn")
    if spawn.get_start_method is not _told_start_method:
        spawn.get_start_method = _told_start_method
    before, _being_started.method = _being_started.method, method
    try:
        yield
    finally:
        _being_started.method = before


def _told_start_method(allow_none: bool = False) -> str | None:
    """In the place of `multiprocessing.get_start_method`, where it is made up what a child is told."""
    method = _being_started.method
    if method is None:
        return multiprocessing.get_start_method(allow_none=allow_none)
    return chosen_start_method() or method


P = ParamSpec("P")
R = TypeVar("R")


class InterruptibleLock:
    """A lock between threads that an interrupt cannot leave locked.

    ``with lock:`` can, in the main thread: from Python 3.14 on a signal handler may run between the taking
    and the block that would give it back (python/cpython#148874). So where Ctrl-C may come there is `run`;
    and where each call counts, its body in line::

        try:
            lock.acquire()
            ...
            lock.release()
        except BaseException:
            try:
                lock.unwind()
            finally:
                lock.unwind()  # should the interrupt have come in the middle of the first one
            raise

    Args:
        of: the condition whose lock it shall be; None: a lock of its own.

    Attributes:
        acquire: ``acquire(blocking=True, timeout=-1) -> bool``, the C method itself.
        release: gives it back.
        is_owned: whether this thread has it.
        raw: the lock itself, for a `threading.Condition`.
    """

    __slots__ = ("acquire", "is_owned", "raw", "release")

    def __init__(self, of: threading.Condition | None = None) -> None:
        # The one lock of the standard library that knows its owner; `threading.Condition` asks it by the same
        # name, and has that name itself.
        lock: Any = of or threading.RLock()
        self.raw: threading.RLock = lock
        self.is_owned: Callable[[], bool] = lock._is_owned
        self.acquire: Callable[..., bool] = lock.acquire
        self.release: Callable[[], None] = lock.release

    def run(self, function: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call ``function(*args, **kwargs)`` while holding the lock."""
        try:
            self.acquire()
            result = function(*args, **kwargs)
            self.release()
        except BaseException:
            try:
                self.unwind()
            finally:
                self.unwind()
            raise
        return result

    def unwind(self) -> None:
        """Give it back if this thread has it."""
        if self.is_owned():
            self.release()

    def __enter__(self) -> bool:
        return self.acquire()

    def __exit__(self, *_exc_info: object) -> None:
        self.release()


def spawning() -> bool:
    """Whether this thread is just starting a child by spawn or forkserver (and pickling what it gets)."""
    return mp_context.get_spawning_popen() is not None


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


class _ExactWaiting:
    """Mixed into the Popen classes of multiprocessing (POSIX).

    All of this may be asked from a signal handler, which Python calls between any two steps of what the main
    thread is just doing, be it here. So a lock is never waited for by the thread that has it already, and
    what the system tells only once is taken and kept in one step: in a single call of C (`deque.extend` with
    a chain of C functions) no handler comes between.
    """

    method: str
    pid: int
    sentinel: int
    returncode: int | None

    def __init__(self, child: ChildProcess) -> None:
        self._guard = InterruptibleLock()
        self._owner = os.getpid()
        self._identity: ProcessIdentity | None = None
        self.peak_rss_bytes: int | None = None
        super().__init__(child)  # type: ignore[call-arg]  # the other base class: starts it
        self._identity = identity.of(self.pid)

    @property
    def identity(self) -> ProcessIdentity | None:
        """Which process it is; None if it had ended before it could be looked at."""
        if self._identity is None and self.returncode is None and self._owner == os.getpid():
            # There was no descriptor to look with right after the start; perhaps there is one now.
            self._guard.run(self._identify)
        return self._identity

    def _identify(self) -> None:
        if self._identity is None and self.returncode is None:
            found = identity.of(self.pid)
            if self._pid_is_its_own():
                self._identity = found

    def _pid_is_its_own(self) -> bool:
        """Whether no other process can have its pid: nobody has waited for it yet."""
        return True

    def poll(self, flag: int = 1) -> int | None:
        # The flag is WNOHANG or 0, as of waitpid.
        if flag == 0:
            return self.wait(None)
        if self.returncode is None and self._owner == os.getpid():
            self._guard.run(self._reap_once)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int | None:
        deadline = deadline_of(None if timeout is None else max(timeout, 0.0))
        while self.poll() is None:
            if self._owner != os.getpid() or not self._wait_for_end(remaining(deadline)):
                return self.poll()
        return self.returncode

    def _send_signal(self, signum: int) -> None:
        # The owner first: after a fork the lock may be held by a thread that is not here.
        if self._owner == os.getpid():
            # Not while another thread reaps it: from then on the pid can be anybody's.
            self._guard.run(self._signal_once, signum)

    def interrupt(self) -> None:
        self._send_signal(signal.SIGINT)

    def _reap_once(self) -> None:
        if self.returncode is None:
            self._reap()

    def _signal_once(self, signum: int) -> None:
        if self.returncode is None:
            self._signal(signum)

    def _reap(self) -> None:
        raise NotImplementedError

    def _wait_for_end(self, timeout: float | None) -> bool:
        """Wait until `_reap` has something to do; False when the time is out."""
        raise NotImplementedError

    def _signal(self, signum: int) -> None:
        raise NotImplementedError


class _OwnChild(_ExactWaiting):
    """For fork and spawn: the process is a child of ours."""

    def __init__(self, child: ChildProcess) -> None:
        # `os.wait4` looks for its result's class there, and the first time imports the module: the only step
        # of Python in it, and one at which a handler could come between.
        importlib.import_module("resource")
        self._ended: deque[tuple[int, int, Any]] = deque()
        super().__init__(child)
        self._close_descriptor: util.Finalize | None = None
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:
                return  # an old kernel, a sandbox, out of descriptors: the sentinel of multiprocessing stays
            self._close_descriptor = util.Finalize(self, os.close, (descriptor,))
            self.sentinel = descriptor

    def _reap(self) -> None:
        try:
            # A result that begins with pid 0 tells that it still runs.
            self._ended.extend(filter(_FIRST, map(os.wait4, (self.pid,), (os.WNOHANG,))))
        except ChildProcessError:
            if not self._ended:
                # Somebody else has waited for it (or nobody can: SIGCHLD is ignored). It has ended; how, is
                # lost.
                self.returncode = _CODE_LOST
                return
        if self._ended:
            _, status, usage = self._ended[0]
            self.peak_rss_bytes = self._peak(usage.ru_maxrss)
            # Last: whoever sees it looks no further.
            self.returncode = os.waitstatus_to_exitcode(status)

    def _peak(self, maxrss: int) -> int | None:
        if self.method == "spawn":
            import resource  # noqa: PLC0415  POSIX only

            # Between fork and exec a spawned child shares our memory, and Linux counts that as its own.
            # So what is not above our own peak tells nothing.
            if maxrss <= resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:
                return None
        return maxrss * (1 if sys.platform == "darwin" else 1024)

    def _wait_for_end(self, timeout: float | None) -> bool:
        if self._close_descriptor is not None:
            return bool(connection.wait([self.sentinel], timeout))
        if self.identity is None:
            return True
        return self.identity not in families.wait_gone([self.identity], timeout)

    def _signal(self, signum: int) -> None:
        # Not reaped yet, and no other thread is reaping it now: the pid is still its own. A signal handler of
        # this thread may do so, between here and there; systems hand out a pid again late.
        try:
            os.kill(self.pid, signum)
        except ProcessLookupError:
            return  # reaped by somebody else: see `_reap`

    def close(self) -> None:
        if self._close_descriptor is not None:
            self._close_descriptor()
        super().close()  # type: ignore[misc]  # the other base class has it


class _ChildOfServer(_ExactWaiting):
    """For forkserver: the process is a child of the server, which tells us the pid and then the exit code."""

    _server_died = False

    def __init__(self, child: ChildProcess) -> None:
        self._told: deque[bytes] = deque()
        super().__init__(child)

    def _reap(self) -> None:
        if not self._told and not self._server_died:
            if not connection.wait([self.sentinel], 0):
                return
            with contextlib.suppress(OSError):
                # Eight bytes that were written at once come at once. If nothing comes, the server has died;
                # or a signal handler has read them just before.
                self._told.extend(filter(None, map(os.read, (self.sentinel,), (_EXIT_CODE.size,))))
            self._server_died = not self._told
        if self._told:
            self.returncode = _EXIT_CODE.unpack(self._told[0])[0]
        elif self._server_died and (self._identity is None or not identity.is_alive(self._identity)):
            self.returncode = _CODE_LOST

    def _wait_for_end(self, timeout: float | None) -> bool:
        if self._server_died and self._identity is not None:
            return self._identity not in families.wait_gone([self._identity], timeout)
        return bool(connection.wait([self.sentinel], timeout))

    @override
    def _pid_is_its_own(self) -> bool:
        # Once it has waited for it the server tells, at once.
        return not connection.wait([self.sentinel], 0)

    def _signal(self, signum: int) -> None:
        if self.identity is not None:
            families.send_signal(self.identity, signum)
        elif self._pid_is_its_own():
            # It could not be looked at so far: better so than not at all.
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signum)


_FIRST: Final = operator.itemgetter(0)

# As `multiprocessing.forkserver.write_signed` writes it. Its `read_signed` is Python code, between whose
# steps a signal handler may come.
_EXIT_CODE: Final = struct.Struct("q")

_CODE_LOST: Final = 255
"""The exit code of a process that has ended nobody knows how; multiprocessing uses the same."""


@functools.cache
def _popen_class(start_method: str) -> type[Any]:
    if sys.platform == "win32":
        from multiprocessing import popen_spawn_win32  # noqa: PLC0415

        return popen_spawn_win32.Popen
    if start_method == "fork":
        from multiprocessing import popen_fork  # noqa: PLC0415

        return type("Popen", (_OwnChild, popen_fork.Popen), {})
    if start_method == "spawn":
        from multiprocessing import popen_spawn_posix  # noqa: PLC0415

        return type("Popen", (_OwnChild, popen_spawn_posix.Popen), {})
    from multiprocessing import popen_forkserver  # noqa: PLC0415

    return type("Popen", (_ChildOfServer, popen_forkserver.Popen), {})


# --- the fork server ---------------------------------------------------------------------------------------

_starting_server = threading.Lock()


def _forget_after_fork() -> None:
    global _starting_server
    _starting_server = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_after_fork)


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the fork server of multiprocessing, unless it runs, and have it import modules of ours first.

    Returns at once: the server comes up while the caller goes on. It takes nothing from the application: what
    that has asked the server to import is imported as well, and before; what it asks for later holds for a
    server that is started later, as ever. Its own children merely find modules loaded that its main process
    has loaded too. A server that runs already stays as it is.

    A Ctrl-C while it starts does not end it: see `mpkit._platform.server_mask`.

    Args:
        modules: What its children need; a child then starts without importing anything.

    Raises:
        OSError: The system refuses a process or descriptors.
    """
    from multiprocessing import forkserver, resource_tracker  # noqa: PLC0415  POSIX only

    server: Any = vars(forkserver)["_forkserver"]
    with _starting_server:
        before: list[str] = server._preload_modules
        with_ours = [*before, *modules]
        is_blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
        # On 3.15 the application may have asked that a module which cannot be imported ends the server.
        polite = getattr(server, "_preload_on_error", "ignore") == "ignore"
        if server._forkserver_pid is None and polite and _is_found_by_every_interpreter():
            server._preload_modules = with_ours
            if not is_blocked:
                with_ours.append("mpkit._platform.server_mask")
                # The server does it otherwise, and before 3.12 that leaves SIGINT unblocked.
                resource_tracker.ensure_running()
                signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with _starting_by("forkserver"):
                server.ensure_running()
        finally:
            if not is_blocked:
                signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            # Unless another thread has just asked for others.
            if server._preload_modules is with_ours:
                server._preload_modules = before


def _is_found_by_every_interpreter() -> bool:
    """Whether ``import mpkit`` means this very package in a new interpreter, too.

    Before 3.14 the fork server does not get our `sys.path`. Should it find another mpkit first (in the
    current directory, say), all its children would have that one.
    """
    if sys.flags.no_site or sys.flags.isolated or sys.flags.ignore_environment:
        return False
    import site  # noqa: PLC0415  loaded at the start of nearly every interpreter, but not of all

    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sites = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    places = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sites]
    for place in places:
        if place and os.path.exists(os.path.join(place, "mpkit")):
            return os.path.realpath(place) == os.path.realpath(home)
    # Not there: then one of the files by which `site` adds directories has to name it.
    return any(home in _directories_added_in(place) for place in sites)


def _directories_added_in(place: str) -> list[str]:
    from mpkit._platform.cgroups import lines_of  # noqa: PLC0415  asked once in a program, by the parent

    with contextlib.suppress(OSError):
        return [
            line.strip()
            for name in os.listdir(place)
            if name.endswith(".pth")
            for line in lines_of(os.path.join(place, name))
        ]
    return []


# --- pickling ---------------------------------------------------------------------------------------------


def extra_reducers() -> Mapping[type[Any], Callable[[Any], Any]]:
    """How multiprocessing pickles what `pickle` cannot (connections, sockets, ...): by type, a live view."""
    reducers: Mapping[type[Any], Callable[[Any], Any]] = vars(reduction.ForkingPickler)["_extra_reducers"]
    return reducers
