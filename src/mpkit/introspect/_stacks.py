"""The Python stack of a pool's worker, asked for from outside its pool.

A worker writes its stack into a pipe of its own when it gets a certain signal (see `mpkit.pool._stacks`),
from inside the signal handler, so C code that holds the interpreter lock does not stand in the way. On
Linux that pipe can be opened from outside as well. Should the pool ask at the very same moment, each of
the two may get a part of the text.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mpkit._platform import families, identity
from mpkit._platform.readiness import wait_readable
from mpkit.errors import AccessDenied, MpkitError, ProcessGone
from mpkit.introspect._pools import worker_row
from mpkit.introspect._translate import find, translated
from mpkit.pool._stack_signal import STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Iterator

    import psutil

    from mpkit.pool._outside import WorkerRow

# A stack is over when nothing more has come for this long; the worker writes it in one go.
_QUIET_SECONDS = 0.02
_ANSWER_SECONDS = 2.0
_CHUNK = 1 << 16


class FoundWorker(NamedTuple):
    """A worker and what its status row says."""

    process: psutil.Process
    row: WorkerRow


def workers_under(pid: int) -> list[FoundWorker]:
    """The worker `pid`, or else all workers below the process `pid`.

    Raises:
        ProcessGone, AccessDenied: the process cannot be looked at.
    """
    top = find(pid)
    row = worker_row(top)
    if row is not None:
        return [FoundWorker(top, row)]
    with translated(pid):
        below = top.children(recursive=True)
    return list(_workers(below))


def _workers(processes: list[psutil.Process]) -> Iterator[FoundWorker]:
    for process in processes:
        with contextlib.suppress(ProcessGone, AccessDenied):
            row = worker_row(process)
            if row is not None:
                yield FoundWorker(process, row)


def stack_of(worker: FoundWorker) -> str:
    """The stack of every thread of a worker now; "" when it does not answer in time (it is stopped, or
    starting).

    Raises:
        ProcessGone: it has ended.
        AccessDenied: it belongs to someone else.
        MpkitError: this system does not let its pipe be opened from outside.

    Blocking: a few milliseconds, 2 seconds at most.
    """
    pid, number = worker.process.pid, worker.row.stack_pipe
    if sys.platform != "linux" or STACK_SIGNAL is None:
        raise MpkitError(
            "the stack of a worker can be asked for from outside on Linux only; elsewhere use"
            " TaskPool.stacks() inside the program"
        )
    if number is None:
        return ""
    try:
        pipe = os.open(f"/proc/{pid}/fd/{number}", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, ProcessLookupError):
        raise ProcessGone(pid=pid) from None
    except PermissionError:
        raise AccessDenied(pid=pid) from None
    try:
        # Whoever has that number now: still the worker, and still a pipe?
        who = identity.of(pid)
        if who is None or not worker.process.is_running() or not stat.S_ISFIFO(os.fstat(pipe).st_mode):
            raise ProcessGone(pid=pid)
        # What lies in it is old.
        _read(pipe)
        if not families.send_signal(who, STACK_SIGNAL):
            raise ProcessGone(pid=pid)
        return _answer(pipe)
    finally:
        os.close(pipe)


def _answer(pipe: int) -> str:
    deadline = time.monotonic() + _ANSWER_SECONDS
    text = b""
    while True:
        patience = _QUIET_SECONDS if text else max(deadline - time.monotonic(), 0.0)
        if not wait_readable(pipe, patience):
            break
        more = _read(pipe)
        if not more:
            break
        text += more
    return text.decode(errors="backslashreplace")


def _read(pipe: int) -> bytes:
    """All that is in the pipe; never waits."""
    found = b""
    with contextlib.suppress(BlockingIOError):
        while data := os.read(pipe, _CHUNK):
            found += data
    return found
