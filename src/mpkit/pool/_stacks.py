"""The Python stack of a worker: on request while it lives, and what its fault handler wrote when it crashed.

Each worker has a pipe of its own for this, into which `faulthandler` writes: on a signal
(`mpkit.pool._worker.STACK_SIGNAL`), from inside the signal handler, so C code that holds the interpreter lock
does not stand in its way; and on a fatal signal. A pipe rather than a file, because its arrival is an event,
and nothing is left on a disk when anybody dies. It does not block the worker: what does not fit is cut off.
"""

from __future__ import annotations

import os
import select
import time
from multiprocessing.connection import Connection

from mpkit._platform import families
from mpkit._platform.identity import ProcessIdentity
from mpkit.pool._channel import INITIALIZING, STATE
from mpkit.pool._lane import Lane
from mpkit.pool._worker import STACK_SIGNAL

#: A stack is over when nothing more has come for this long.
_QUIET_SECONDS = 0.004
_CHUNK = 1 << 16


def live_stack(lane: Lane, timeout: float) -> str:
    """The Python stack of a worker now; "" when it does not answer in time (stopped, starting, or gone).

    Blocking: for `timeout` seconds at most, usually a few milliseconds.
    """
    pipe = lane.stack_pipe
    if pipe is None or STACK_SIGNAL is None or lane.identity is None or lane.words[STATE] < INITIALIZING:
        return ""
    return lane.stack_lock.run(_ask, pipe, lane.identity, STACK_SIGNAL, time.monotonic() + timeout)


def _ask(pipe: Connection, worker: ProcessIdentity, number: int, deadline: float) -> str:
    _read(pipe.fileno())
    if not families.send_signal(worker, number):
        return ""
    text = b""
    while True:
        wait = _QUIET_SECONDS if text else max(deadline - time.monotonic(), 0.0)
        if not select.select([pipe], [], [], wait)[0]:
            return text.decode(errors="replace")
        more = _read(pipe.fileno())
        if not more:
            return text.decode(errors="replace")
        text += more


def last_words(lane: Lane) -> str:
    """What the fault handler of a dead worker wrote; "" if nothing."""
    if lane.stack_pipe is None:
        return ""
    with lane.stack_lock:
        return _read(lane.stack_pipe.fileno()).decode(errors="replace")


def _read(descriptor: int) -> bytes:
    """All that is in the pipe. It never waits: the reading end does not block."""
    found = b""
    while True:
        try:
            data = os.read(descriptor, _CHUNK)
        except BlockingIOError:
            return found
        if not data:
            return found
        found += data
