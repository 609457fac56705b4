"""Every exception that mpkit raises on purpose.

All derive from `MpkitError`, and each also from what callers of the standard library catch today, so that
code written for `queue`, `multiprocessing` or `concurrent.futures` keeps working unchanged. Each survives a
pickle round trip with its message, its attributes, its notes and its ``__cause__``.

Constructors take the message first (most compose one from the attributes when it is left out) and the
attributes by keyword.
"""

# This module imports nothing of mpkit. It does import `concurrent.futures.process`, which a class that *is* a
# `BrokenProcessPool` needs: after what mpkit loads in any case (`multiprocessing.connection`,
# `concurrent.futures`) it costs about 2 ms, once per process. Classes made on demand would save that and cost
# every reader more.

from __future__ import annotations

import errno
import pickle
import queue
import sys
import traceback
from concurrent.futures import CancelledError
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import TimeoutError as _MultiprocessingTimeoutError
from typing import Any

__all__ = [
    "AccessDenied",
    "ClosedError",
    "HandleLost",
    "InitializerFailed",
    "MpkitError",
    "PoolBroken",
    "ProcessGone",
    "QueueEmpty",
    "QueueFull",
    "QueueShutDown",
    "SerializationError",
    "SharedMemoryExhausted",
    "TaskCancelled",
    "TaskTimeout",
    "WaitTimeout",
    "WorkerCrashed",
    "WorkerMemoryExceeded",
]


class MpkitError(Exception):
    """The base of every exception that mpkit raises on purpose.

    Safe from: any process; an instance can be pickled, whatever its cause is. A cause that cannot be
    pickled is replaced by a note with its text.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # BaseException.__setstate__ sets each item as an attribute, so the cause (and what the built-in bases
        # keep outside __dict__) comes back without a rebuilding function of our own.
        state: dict[str, object] = dict(self.__dict__)
        cause = self.__cause__
        if cause is not None:
            # An mpkit error makes sure of its own causes, so a chain of them is not tried over and over.
            if isinstance(cause, MpkitError) or _survives_pickling(cause):
                state["__cause__"] = cause
            else:
                text = "".join(traceback.format_exception_only(type(cause), cause)).strip()
                notes = [*getattr(self, "__notes__", ()), f"The cause could not be pickled; it was: {text}"]
                state["__notes__"] = notes
        return type(self), self._constructor_arguments(), state

    def _constructor_arguments(self) -> tuple[object, ...]:
        """What rebuilds this error: `args`, except for classes whose constructor differs from it."""
        return self.args


class _SystemError(MpkitError, OSError):
    """The base of those that carry an `errno` and a message."""

    def _constructor_arguments(self) -> tuple[object, ...]:
        # `args` is (errno, message) here, but the errno is the constructor's own affair.
        return (self.strerror,)


# --- queues and handles -------------------------------------------------------------------------------------


class QueueEmpty(MpkitError, queue.Empty):
    """A non-blocking or timed `get` found no item in time."""


class QueueFull(MpkitError, queue.Full):
    """A non-blocking or timed `put` found no room in time."""


if sys.version_info >= (3, 13):
    _ShutDown = queue.ShutDown
else:

    class _ShutDown(Exception):
        """Stands where `queue.ShutDown` is missing (before Python 3.13)."""


class QueueShutDown(MpkitError, _ShutDown):
    """The queue was shut down: raised by `put`, and by `get` once the queue is drained.

    Also a `queue.ShutDown` on Python 3.13 and later.
    """


class ClosedError(MpkitError, ValueError, RuntimeError):
    """A queue, lock, counter, pool, process handle or shared object was used after its `close()`.

    Both a `ValueError`, which `multiprocessing` raises, and a `RuntimeError`, as `concurrent.futures` does.
    """


class HandleLost(_SystemError, FileNotFoundError):
    """The object behind a handle no longer existed when the handle was first used in this process.

    Its creator, and every process that had opened it, had closed it or ended.

    Args:
        message: What was lost, and the remedy. There is a general default.
        name: The name of the shared-memory file or semaphore; it becomes the `filename` as well.

    Attributes:
        name: The name given, or None.
    """

    def __init__(self, message: str | None = None, *, name: str | None = None) -> None:
        if message is None:
            message = (
                "the shared object behind this handle no longer exists; keep its creator alive until "
                "every process that is to use it has opened it"
            )
        super().__init__(errno.ENOENT, message)
        if name is not None:
            self.filename = name
        self.name = name

    def __reduce__(self) -> tuple[Any, ...]:
        make, arguments, state = super().__reduce__()
        # OSError keeps `filename` in a C field, out of __dict__; absent and None print differently.
        return make, arguments, (state if self.name is None else {**state, "filename": self.name})


class SharedMemoryExhausted(_SystemError):
    """Shared memory cannot be reserved (`errno` is `ENOSPC`). Nothing was created and nothing is damaged.

    Args:
        message: What could not be reserved, and the remedy. The default is composed from the attributes.
        requested_bytes: How many bytes were asked for.
        available_bytes: How many bytes the file system had left.

    Attributes:
        requested_bytes: As given, or None.
        available_bytes: As given, or None if something else was lacking (descriptors, address space).
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        requested_bytes: int | None = None,
        available_bytes: int | None = None,
    ) -> None:
        if message is None:
            wanted = "" if requested_bytes is None else f" of {_size(requested_bytes)}"
            left = "" if available_bytes is None else f", {_size(available_bytes)} left"
            message = (
                f"cannot reserve shared memory{wanted}{left}; free some, or make it larger "
                "(in a container: --shm-size)"
            )
        super().__init__(errno.ENOSPC, message)
        self.requested_bytes = requested_bytes
        self.available_bytes = available_bytes


class SerializationError(MpkitError, pickle.PicklingError):
    """An argument, item, result or exception cannot be pickled or unpickled.

    Only the caller concerned gets it; if the value is the caller's own, `put` or `submit` itself raises it.
    The original error is the ``__cause__`` if that can be pickled.
    """


# --- tasks --------------------------------------------------------------------------------------------------

if sys.version_info >= (3, 11):

    class _TimeoutError(MpkitError, TimeoutError, _MultiprocessingTimeoutError):
        """Both timeouts that callers catch: the built-in one and that of multiprocessing."""

else:
    # Until 3.10 the timeout of concurrent.futures was a class of its own.
    from concurrent.futures import TimeoutError as _FuturesTimeoutError

    class _TimeoutError(MpkitError, TimeoutError, _MultiprocessingTimeoutError, _FuturesTimeoutError):
        """All three timeouts that callers catch: built-in, multiprocessing's and concurrent.futures'."""


class TaskTimeout(_TimeoutError):
    """A task exceeded its own time limit and was stopped.

    Also a built-in `TimeoutError`, a `multiprocessing.TimeoutError` and (3.10 as well) a
    `concurrent.futures.TimeoutError`.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`.
        pid: The worker that ran it.
        timeout: The limit in seconds.
        stack: The worker's Python stack at that moment. It becomes a note too, so that a printed traceback
            shows where the task was.

    Attributes:
        task_id: As given, or None.
        pid: As given, or None.
        timeout: As given, or None.
        stack: As given, or None if it was not available.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        task_id: int | None = None,
        pid: int | None = None,
        timeout: float | None = None,
        stack: str | None = None,
    ) -> None:
        if message is None:
            limit = "its time limit" if timeout is None else f"its time limit of {timeout:g} s"
            message = f"{_task(task_id)} ran past {limit} and was stopped{_where(pid)}"
        super().__init__(message)
        self.task_id = task_id
        self.pid = pid
        self.timeout = timeout
        self.stack = stack
        _note_stack(self, stack)


class WaitTimeout(_TimeoutError):
    """The *waiting* timed out (`result(timeout)`, `get(timeout)`); the task or process goes on.

    Also a built-in `TimeoutError`, a `multiprocessing.TimeoutError` and (3.10 as well) a
    `concurrent.futures.TimeoutError`.
    """


class TaskCancelled(MpkitError, CancelledError):
    """The task was cancelled, whether it was still queued or already running."""


class WorkerCrashed(MpkitError, BrokenProcessPool):
    """The worker that ran this task died. Only this task is affected: the pool carries on.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`; None for a process outside a pool.
        pid: The process that died.
        exitcode: Its exit code, negative for a signal, as in `multiprocessing.Process.exitcode`.
        signal: The name of the signal that killed it, such as ``"SIGSEGV"``.
        stack: The text of the fault handler, if there is any. It becomes a note too.
        rss_bytes: Its resident memory when last seen.
        likely_oom: Whether the system's out-of-memory killer is the likely cause.

    Attributes:
        task_id: As given, or None.
        pid: As given, or None.
        exitcode: As given, or None if it is not known.
        signal: As given, or None if it was not killed by a signal.
        stack: As given, or None.
        rss_bytes: As given, or None when it was never measured.
        likely_oom: As given.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        task_id: int | None = None,
        pid: int | None = None,
        exitcode: int | None = None,
        signal: str | None = None,
        stack: str | None = None,
        rss_bytes: int | None = None,
        likely_oom: bool = False,
    ) -> None:
        if message is None:
            message = _describe_death(task_id, pid, exitcode, signal, rss_bytes, likely_oom=likely_oom)
        super().__init__(message)
        self.task_id = task_id
        self.pid = pid
        self.exitcode = exitcode
        self.signal = signal
        self.stack = stack
        self.rss_bytes = rss_bytes
        self.likely_oom = likely_oom
        _note_stack(self, stack)


class WorkerMemoryExceeded(MpkitError, MemoryError):
    """The worker ran past `max_memory_bytes` during this task, and was stopped.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`; None for a process outside a pool.
        pid: The process that was stopped.
        rss_bytes: Its resident memory when it was stopped.
        limit: The limit in bytes.

    Attributes:
        task_id: As given, or None.
        pid: As given, or None.
        rss_bytes: As given, or None.
        limit: As given, or None.
    """

    def __init__(
        self,
        message: str | None = None,
        *,
        task_id: int | None = None,
        pid: int | None = None,
        rss_bytes: int | None = None,
        limit: int | None = None,
    ) -> None:
        if message is None:
            used = "too much memory" if rss_bytes is None else f"{_size(rss_bytes)} of memory"
            allowed = "" if limit is None else f" where {_size(limit)} are allowed"
            is_pools = task_id is not None or pid is None
            who, where = (_task(task_id), _where(pid)) if is_pools else (_process(pid), "")
            message = f"{who} used {used}{allowed} and was stopped{where}"
        super().__init__(message)
        self.task_id = task_id
        self.pid = pid
        self.rss_bytes = rss_bytes
        self.limit = limit


# --- pools --------------------------------------------------------------------------------------------------


class InitializerFailed(MpkitError, BrokenProcessPool):
    """The initializer of a pool raised.

    Every pending task gets this once, with the original exception as its ``__cause__``.
    """


class PoolBroken(MpkitError, BrokenProcessPool):
    """Workers cannot be started at all; the text says why, and what to do."""


# --- other processes ----------------------------------------------------------------------------------------


class ProcessGone(_SystemError, ProcessLookupError):
    """There is no such process, or it ended while it was examined (what `psutil.NoSuchProcess` means).

    Args:
        message: What was asked. The default is composed from `pid`.
        pid: The process asked for.

    Attributes:
        pid: As given, or None.
    """

    def __init__(self, message: str | None = None, *, pid: int | None = None) -> None:
        if message is None:
            message = f"{_process(pid)} does not exist (any more)"
        super().__init__(errno.ESRCH, message)
        self.pid = pid


class AccessDenied(_SystemError, PermissionError):
    """The system does not allow examining this process (what `psutil.AccessDenied` means).

    Args:
        message: What was asked. The default is composed from `pid`.
        pid: The process asked for.

    Attributes:
        pid: As given, or None.
    """

    def __init__(self, message: str | None = None, *, pid: int | None = None) -> None:
        if message is None:
            message = f"{_process(pid)} may not be examined by this user; run as its owner or as root"
        super().__init__(errno.EACCES, message)
        self.pid = pid


# --- wording ------------------------------------------------------------------------------------------------


def _survives_pickling(error: BaseException) -> bool:
    """Whether `error` can be pickled and unpickled: many exceptions with arguments of their own cannot."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  any error at all from foreign code means the same: it cannot travel
        return False
    return True


def _note_stack(error: MpkitError, stack: str | None) -> None:
    if stack:
        # add_note() came with 3.11; on 3.10 the attribute is merely data that travels along.
        note = f"Python stack of the process at that moment:\n{stack.rstrip()}"
        error.__dict__["__notes__"] = [note]


def _size(n: int) -> str:
    """`n` bytes for a person to read."""
    if n < 1024:
        return f"{n} bytes"
    scaled, unit = n / 1024, "KiB"
    for larger in ("MiB", "GiB", "TiB"):
        if scaled < 1024:
            break
        scaled, unit = scaled / 1024, larger
    return f"{scaled:.1f} {unit}"


def _task(task_id: int | None) -> str:
    return "the task" if task_id is None else f"task {task_id}"


def _process(pid: int | None) -> str:
    return "the process" if pid is None else f"process {pid}"


def _where(pid: int | None) -> str:
    return "" if pid is None else f" (process {pid})"


def _describe_death(
    task_id: int | None,
    pid: int | None,
    exitcode: int | None,
    signal: str | None,
    rss_bytes: int | None,
    *,
    likely_oom: bool,
) -> str:
    how = "died"
    if signal is not None:
        how = f"was killed by {signal}"
    elif exitcode is not None:
        how = f"ended with exit code {exitcode}"
    doing = "" if task_id is None else f" while it ran task {task_id}"
    text = f"{_process(pid)} {how}{doing}"
    if rss_bytes is not None:
        text += f"; it last used {_size(rss_bytes)} of memory"
    if likely_oom:
        text += "; the system most likely ran out of memory"
    return text
