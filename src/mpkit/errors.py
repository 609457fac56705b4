"""Every exception that mpkit raises on purpose.

All derive from `MpkitError`, and each also from what callers of the standard library catch today, so that
code written for `queue`, `multiprocessing` or `concurrent.futures` keeps working unchanged. Each survives a
pickle round trip with its message, its attributes, its notes and its ``__cause__``.

Constructors take the message first (most compose one from the attributes when it is left out) and the
attributes by keyword.
"""

# This module imports nothing else of mpkit, so that every other module may import it. What it costs to import
# `concurrent.futures.process`, and why it does so: see "Decisions" in docs/explanation/architecture.md.

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

    An instance can always be pickled, whatever its ``__cause__`` is: a cause that cannot be pickled is
    replaced by a note with its text.
    """

    def __reduce__(self) -> tuple[Any, ...]:
        # `BaseException.__setstate__` sets each item as an attribute, so it also restores the cause, and what
        # the built-in bases keep outside `__dict__`.
        state: dict[str, object] = dict(self.__dict__)
        cause = self.__cause__
        if cause is not None:
            # An mpkit error checks its own cause when it is pickled, so a chain of them is not tried again
            # and again.
            if isinstance(cause, MpkitError) or _survives_pickling(cause):
                state["__cause__"] = cause
            else:
                text = "".join(traceback.format_exception_only(type(cause), cause)).strip()
                notes = [*getattr(self, "__notes__", ()), f"The cause could not be pickled; it was: {text}"]
                state["__notes__"] = notes
        return type(self), self._constructor_arguments(), state

    def _constructor_arguments(self) -> tuple[object, ...]:
        """The arguments with which unpickling calls the class. Overridden where `args` does not fit."""
        return self.args


class _SystemError(MpkitError, OSError):
    """The base of the errors with an `errno` and a message."""

    def _constructor_arguments(self) -> tuple[object, ...]:
        # `args` is (errno, message) here, but the constructors choose the errno themselves.
        return (self.strerror,)


# -- queues and handles --------------------------------------------------------------------------------------


class QueueEmpty(MpkitError, queue.Empty):
    """A non-blocking or timed `get` found no item in time. The queue is unchanged."""


class QueueFull(MpkitError, queue.Full):
    """A non-blocking or timed `put` found no room in time. The queue is unchanged."""


if sys.version_info >= (3, 13):
    _ShutDown = queue.ShutDown
else:

    class _ShutDown(Exception):
        """Stands in for `queue.ShutDown`, which Python 3.13 introduced."""


class QueueShutDown(MpkitError, _ShutDown):
    """The queue was shut down: raised by `put`, and by `get` once the queue is drained.

    Also a `queue.ShutDown` on Python 3.13 and later.
    """


class ClosedError(MpkitError, ValueError, RuntimeError):
    """A queue, lock, counter, pool, process handle or shared object was used after its `close()`.

    It is both a `ValueError`, as `multiprocessing` raises, and a `RuntimeError`, as `concurrent.futures`
    does.
    """


class HandleLost(_SystemError, FileNotFoundError):
    """The object behind a handle (a queue, lock or counter) no longer existed when the handle arrived here.

    Its creator, and every process that had opened it, had closed it or ended. The error is raised where the
    handle is first used, and by every later use.

    Args:
        message: What was lost, and the remedy. There is a general default.
        name: The name of the shared-memory file or semaphore; it also becomes the `filename`.

    Attributes:
        name: As given, or None.
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
        # OSError keeps `filename` in a C field, outside `__dict__`. It is restored only if there was one,
        # because `str` prints a file name that was set to None, too.
        return make, arguments, (state if self.name is None else {**state, "filename": self.name})


class SharedMemoryExhausted(_SystemError):
    """Shared memory cannot be reserved or opened (`errno` is `ENOSPC`). Nothing is left half done.

    Besides a lack of room in ``/dev/shm`` (and in the temporary directory), this can be a lack of file
    descriptors or address space. The message says which, and what to do.

    Args:
        message: What could not be reserved, and the remedy. The default is composed from the attributes.
        requested_bytes: How many bytes were requested.
        available_bytes: How many bytes the file system had left.

    Attributes:
        requested_bytes: As given; None if something that exists could not be opened.
        available_bytes: As given; None if something else was lacking (descriptors, address space).
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

    It is raised only to the caller concerned. For a value that this caller passes in, `put`, `submit` or
    `start` itself raises it, and nothing has been sent. The original error is the ``__cause__``, unless it
    comes from another process and cannot be pickled.
    """


# -- tasks ---------------------------------------------------------------------------------------------------

if sys.version_info >= (3, 11):

    class _TimeoutError(MpkitError, TimeoutError, _MultiprocessingTimeoutError):
        """Both timeout classes that callers catch: the built-in one and that of multiprocessing."""

else:
    # Up to 3.10, the timeout of concurrent.futures is a separate class.
    from concurrent.futures import TimeoutError as _FuturesTimeoutError

    class _TimeoutError(MpkitError, TimeoutError, _MultiprocessingTimeoutError, _FuturesTimeoutError):
        """All three timeout classes that callers catch: built-in, multiprocessing's, concurrent.futures'."""


class TaskTimeout(_TimeoutError):
    """A task exceeded its own time limit and was stopped.

    It is also a built-in `TimeoutError`, a `multiprocessing.TimeoutError` and, on every Python version, a
    `concurrent.futures.TimeoutError`.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`.
        pid: The pid of the worker that ran it.
        timeout: The limit in seconds.
        stack: The worker's Python stack at that moment, as text. It also becomes a note, so that a printed
            traceback shows where the task was (from Python 3.11 on).

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
            message = f"{_task(task_id)} exceeded {limit} and was stopped{_where(pid)}"
        super().__init__(message)
        self.task_id = task_id
        self.pid = pid
        self.timeout = timeout
        self.stack = stack
        _note_stack(self, stack)


class WaitTimeout(_TimeoutError):
    """The *waiting* timed out (`result(timeout)`, `get(timeout)`); the task or process goes on.

    It is also a built-in `TimeoutError`, a `multiprocessing.TimeoutError` and, on every Python version, a
    `concurrent.futures.TimeoutError`.
    """


class TaskCancelled(MpkitError, CancelledError):
    """The task was cancelled, whether it was still queued or already running."""


class WorkerCrashed(MpkitError, BrokenProcessPool):
    """The worker that ran this task died, or a `WorkerProcess` ended before its target had returned.

    In a pool only this task is affected: the pool carries on.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`; None for a process outside a pool.
        pid: The pid of the process that died.
        exitcode: Its exit code, negative for a signal, as in `multiprocessing.Process.exitcode`.
        signal: The name of the signal that killed it, such as ``"SIGSEGV"``.
        stack: What Python's fault handler wrote when it crashed. It also becomes a note.
        rss_bytes: Its resident memory in bytes: of a worker of a pool when last measured, of a
            `WorkerProcess` the most that it ever had.
        likely_oom: Whether the system's out-of-memory killer is the likely cause.

    Attributes:
        task_id: As given, or None.
        pid: As given, or None if there was no process yet.
        exitcode: As given, or None if it is not known.
        signal: As given, or None if it was not killed by a signal.
        stack: As given, or None.
        rss_bytes: As given, or None if it is not known.
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
    """The worker exceeded `max_memory_bytes` during this task, or a `WorkerProcess` did, and was killed.

    Args:
        message: What happened. The default is composed from the attributes.
        task_id: The id of the task, as in `TaskHandle.task_id`; None for a process outside a pool.
        pid: The pid of the process that was killed.
        rss_bytes: Its resident memory in bytes, as measured just before.
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
            allowed = "" if limit is None else f" ({_size(limit)} allowed)"
            is_pools = task_id is not None or pid is None
            who, where = (_task(task_id), _where(pid)) if is_pools else (_process(pid), "")
            message = f"{who} used {used}{allowed} and was stopped{where}"
        super().__init__(message)
        self.task_id = task_id
        self.pid = pid
        self.rss_bytes = rss_bytes
        self.limit = limit


# -- pools ---------------------------------------------------------------------------------------------------


class InitializerFailed(MpkitError, BrokenProcessPool):
    """The initializer of a pool raised. The pool starts no more workers.

    Every pending task ends with this error, which has the original exception as its ``__cause__``; later
    calls of `submit` raise it.
    """


class PoolBroken(MpkitError, BrokenProcessPool):
    """The pool cannot start workers at all. The message says why, and what to do."""


# -- other processes -----------------------------------------------------------------------------------------


class ProcessGone(_SystemError, ProcessLookupError):
    """There is no such process, or it ended while it was examined (the meaning of `psutil.NoSuchProcess`).

    Args:
        message: What happened. The default is composed from `pid`.
        pid: The pid of the process in question.

    Attributes:
        pid: As given, or None.
    """

    def __init__(self, message: str | None = None, *, pid: int | None = None) -> None:
        if message is None:
            message = f"{_process(pid)} does not exist (any more)"
        super().__init__(errno.ESRCH, message)
        self.pid = pid


class AccessDenied(_SystemError, PermissionError):
    """The system does not allow examining this process (the meaning of `psutil.AccessDenied`).

    Args:
        message: What happened. The default is composed from `pid`.
        pid: The pid of the process in question.

    Attributes:
        pid: As given, or None.
    """

    def __init__(self, message: str | None = None, *, pid: int | None = None) -> None:
        if message is None:
            message = f"{_process(pid)} may not be examined by this user; run as its owner or as root"
        super().__init__(errno.EACCES, message)
        self.pid = pid


# -- wording -------------------------------------------------------------------------------------------------


def _survives_pickling(error: BaseException) -> bool:
    """Whether `error` survives pickling. Many exceptions with a constructor of their own do not."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:  # noqa: BLE001  any error from foreign code means the same: it cannot be sent
        return False
    return True


def _note_stack(error: MpkitError, stack: str | None) -> None:
    if stack:
        # Set directly, because `add_note` came with 3.11. On 3.10 it is an attribute like any other.
        note = f"Python stack of the process at that moment:\n{stack.rstrip()}"
        error.__dict__["__notes__"] = [note]


def _size(n: int) -> str:
    """`n` bytes in a form for people, such as "1.5 GiB"."""
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
        text += f"; it had used {_size(rss_bytes)} of memory"
    if likely_oom:
        text += "; the system most likely ran out of memory"
    return text
