"""The Python stack of a pool's worker, asked for from outside its pool.

A worker writes its stack into a pipe of its own when it gets a certain signal (see
`mpkit.pool._engine.stacks`), from inside the signal handler, so C code that holds the interpreter lock does
not stand in the way. On Linux that pipe can be opened from outside as well. Should the pool ask at the very
same moment, each of the two may get a part of the text.
"""

from __future__ import annotations

import contextlib
import os
import stat
import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mpkit._platform.files.descriptors import NO_TERMINAL, NO_WAIT, NOT_INHERITED
from mpkit._platform.processes import identity, signalling
from mpkit._platform.signals.handlers_at_work import HandlerWatch, is_caught
from mpkit._platform.threads.readiness import read_available
from mpkit.errors import AccessDenied, MpkitError, ProcessGone
from mpkit.introspect._pools import worker_row
from mpkit.introspect._translate import find, translated
from mpkit.pool._engine.stacks import read_stacks
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import psutil

    from mpkit.pool._outside import WorkerRow

# See `read_stacks`.
_QUIET_SECONDS = 0.02
_ANSWER_SECONDS = 2.0

_OPEN_FLAGS = os.O_RDONLY | NOT_INHERITED | NO_WAIT | NO_TERMINAL


class FoundWorker(NamedTuple):
    """A worker and what its status row says."""

    process: psutil.Process
    row: WorkerRow


class _Asked(NamedTuple):
    """A worker that has been asked."""

    pipe: int
    handler: HandlerWatch


def workers_under(pid: int) -> list[FoundWorker]:
    """The worker `pid`, or else all workers below the process `pid`.

    Raises:
        ProcessGone: there is no such process.
        AccessDenied: the process cannot be looked at, and no worker is found below it.
    """
    top = find(pid)
    denied: AccessDenied | None = None
    try:
        row = worker_row(top)
    except AccessDenied as error:
        # Another user's: a supervisor, or the first process of a container. Workers of ours may be below.
        row, denied = None, error
    if row is not None:
        return [FoundWorker(top, row)]
    with translated(pid):
        below = top.children(recursive=True)
    workers = list(_workers(below))
    if denied is not None and not workers:
        raise denied
    return workers


def _workers(processes: list[psutil.Process]) -> Iterator[FoundWorker]:
    for process in processes:
        with contextlib.suppress(ProcessGone, AccessDenied):
            row = worker_row(process)
            if row is not None:
                yield FoundWorker(process, row)


def stacks_of(workers: Sequence[FoundWorker]) -> list[str | ProcessGone | AccessDenied]:
    """The stack of every thread of each worker now, in their order; "" of one that does not answer in time
    (it is stopped, or starting), and the error of one that has ended or belongs to someone else.

    Raises:
        MpkitError: this system does not let their pipes be opened from outside.

    Blocking: a few milliseconds, 2 seconds at most, however many do not answer.
    """
    if sys.platform != "linux" or STACK_SIGNAL is None:
        raise MpkitError(
            "the stack of a worker can be asked for from outside on Linux only; elsewhere use"
            " TaskPool.stacks() inside the program"
        )
    pipes: list[int] = []
    try:
        # All are asked before the first one is waited for.
        asked = [_asked(worker, pipes) for worker in workers]
        watches = dict(answer for answer in asked if isinstance(answer, _Asked))
        texts = read_stacks(watches, time.monotonic() + _ANSWER_SECONDS, _QUIET_SECONDS)
    finally:
        for pipe in pipes:
            os.close(pipe)
    return [texts[answer.pipe] if isinstance(answer, _Asked) else answer or "" for answer in asked]


def _asked(worker: FoundWorker, pipes: list[int]) -> _Asked | ProcessGone | AccessDenied | None:
    """The pipe in which the answer of a worker comes; or why none will come.

    What has been opened is added to `pipes`, for the caller to close.
    """
    pid, number = worker.process.pid, worker.row.stack_pipe
    if number is None:
        return None
    try:
        pipe = os.open(f"/proc/{pid}/fd/{number}", _OPEN_FLAGS)
    except PermissionError:
        return AccessDenied(pid=pid)
    except OSError as error:
        if identity.is_lack_of_means(error):
            raise
        # Or what has that number is nothing that can be opened (a socket).
        return ProcessGone(pid=pid)
    pipes.append(pipe)
    # Whoever has that number now: still the worker, and still a pipe?
    who = identity.of(pid)
    if who is None or not worker.process.is_running() or not stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return ProcessGone(pid=pid)
    # What lies in it is old.
    read_available(pipe)
    assert STACK_SIGNAL is not None
    # It may have become another program, whose owner would have it ended by us.
    if not is_caught(pid, STACK_SIGNAL):
        return None
    asked = _Asked(pipe, HandlerWatch(pid, STACK_SIGNAL))
    return asked if signalling.send_signal(who, STACK_SIGNAL) else ProcessGone(pid=pid)
