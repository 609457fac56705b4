"""The Python stack of a pool's worker, requested by another program.

A worker that gets a certain signal writes its stack into its own pipe, from inside the signal handler, so
this works even while C code holds the interpreter lock (see `mpkit.pool._engine.stacks`). On Linux, other
processes can open that pipe as well. If the pool asks at the very same moment, each of the two may get a part
of the text.
"""

from __future__ import annotations

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
from mpkit.introspect._pools import FoundWorker, worker_row, workers_among
from mpkit.introspect._translate import find, translated
from mpkit.pool._engine.stacks import read_stacks
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL

if TYPE_CHECKING:
    from collections.abc import Sequence

#: A stack is complete when nothing more has come for so long: see `read_stacks`.
_QUIET_SECONDS = 0.02
#: How long workers may take to answer.
_ANSWER_SECONDS = 2.0

_OPEN_FLAGS = os.O_RDONLY | NOT_INHERITED | NO_WAIT | NO_TERMINAL


class _Asked(NamedTuple):
    """A worker that has been sent the signal: its pipe, and what tells whether it is writing."""

    pipe: int
    handler: HandlerWatch


def workers_under(pid: int) -> list[FoundWorker]:
    """The process `pid` if it is a worker, otherwise all workers among its descendants.

    Raises:
        ProcessGone: there is no such process.
        AccessDenied: the process may not be examined, and no worker is found among its descendants.
    """
    top = find(pid)
    denied: AccessDenied | None = None
    try:
        row = worker_row(top)
    except AccessDenied as error:
        # It belongs to another user (a service manager, the first process of a container), but there may be
        # workers of this user among its descendants.
        row, denied = None, error
    if row is not None:
        return [FoundWorker(top, row)]
    with translated(pid):
        below = top.children(recursive=True)
    workers = list(workers_among(below))
    if denied is not None and not workers:
        raise denied
    return workers


def stacks_of(workers: Sequence[FoundWorker]) -> list[str | ProcessGone | AccessDenied]:
    """The stacks of all threads of each worker now.

    Returns:
        A text for each worker, in their order; "" if it does not answer in time (because it is stopped, or
        starting). Instead of a text, the error if it has ended, or belongs to another user.

    Raises:
        MpkitError: this is not possible on this system.

    Blocking: for a few milliseconds; for 2 seconds if any of them does not answer.
    """
    if sys.platform != "linux" or STACK_SIGNAL is None:
        raise MpkitError(
            "the stack of a worker can be asked for from outside on Linux only; elsewhere use"
            " TaskPool.stacks() inside the program"
        )
    pipes: list[int] = []
    try:
        # All are asked before this waits for any of them.
        asked = [_asked(worker, pipes) for worker in workers]
        watches = dict(answer for answer in asked if isinstance(answer, _Asked))
        texts = read_stacks(watches, time.monotonic() + _ANSWER_SECONDS, _QUIET_SECONDS)
    finally:
        for pipe in pipes:
            os.close(pipe)
    return [texts[answer.pipe] if isinstance(answer, _Asked) else answer or "" for answer in asked]


def _asked(worker: FoundWorker, pipes: list[int]) -> _Asked | ProcessGone | AccessDenied | None:
    """Ask a worker for its stack.

    A pipe that has been opened is added to `pipes`, and has to be closed by the caller.

    Returns:
        Where the answer will come; or the error, or None, if no answer will come.
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
    # Check that the pid still belongs to the worker, and that what has been opened is a pipe.
    who = identity.of(pid)
    if who is None or not worker.process.is_running() or not stat.S_ISFIFO(os.fstat(pipe).st_mode):
        return ProcessGone(pid=pid)
    # Discard what is left of earlier answers.
    read_available(pipe)
    assert STACK_SIGNAL is not None
    # The worker may have become another program, which the signal would kill.
    if not is_caught(pid, STACK_SIGNAL):
        return None
    asked = _Asked(pipe, HandlerWatch(pid, STACK_SIGNAL))
    return asked if signalling.send_signal(who, STACK_SIGNAL) else ProcessGone(pid=pid)
