"""The Python stack of a worker: on request while it lives, and what its fault handler wrote when it crashed.

Each worker has a pipe of its own for this, into which `faulthandler` writes: on a signal
(`mpkit.pool._stack_signal`), from inside the signal handler, so C code that holds the interpreter lock
does not stand in its way; and on a fatal signal. A pipe rather than a file, because its arrival is an event,
and nothing is left on a disk when anybody dies. It does not block the worker: what does not fit is cut off.
"""

from __future__ import annotations

import time

from mpkit._platform import families
from mpkit._platform.handlers_at_work import HandlerWatch, is_caught
from mpkit._platform.readiness import MOST_AT_ONCE, read_available, wait_readable
from mpkit.pool._channel import INITIALIZING, STATE
from mpkit.pool._lane import Lane
from mpkit.pool._stack_signal import STACK_SIGNAL

#: A stack is over when nothing more has come for this long, unless the worker is still writing it.
_QUIET_SECONDS = 0.004


def live_stack(lane: Lane, timeout: float) -> str:
    """The Python stack of a worker now; "" when it does not answer in time (stopped, starting, or gone).

    Blocking: for `timeout` seconds at most, usually a few milliseconds.
    """
    return lane.stack_lock.run(_ask, lane, time.monotonic() + timeout)


def _ask(lane: Lane, deadline: float) -> str:
    # Under the lock: the supervisor closes the pipe of a worker that has ended.
    pipe, worker = lane.stack_pipe, lane.identity
    if pipe is None or STACK_SIGNAL is None or worker is None or lane.words[STATE] < INITIALIZING:
        return ""
    # A task may have taken the handler away, and the signal would end the worker.
    if not is_caught(worker.pid, STACK_SIGNAL):
        return ""
    descriptor = pipe.fileno()
    read_available(descriptor)
    handler = HandlerWatch(worker.pid, STACK_SIGNAL)
    try:
        if not families.send_signal(worker, STACK_SIGNAL):
            return ""
    except PermissionError:
        # It has become another user's: so it cannot be asked.
        return ""
    text = b""
    while True:
        wait = _QUIET_SECONDS if text else max(deadline - time.monotonic(), 0.0)
        more = read_available(descriptor) if wait_readable(descriptor, wait) else b""
        text += more
        # A worker that has lost its core in the middle of it is not done. (One whose code writes there
        # without end never is.)
        if (
            (more or (text and handler.is_at_work()))
            and len(text) < MOST_AT_ONCE
            and time.monotonic() < deadline
        ):
            continue
        return (text + read_available(descriptor)).decode(errors="replace")


def last_words(lane: Lane) -> str:
    """What the fault handler of a dead worker wrote; "" if nothing."""
    with lane.stack_lock:
        pipe = lane.stack_pipe
        return "" if pipe is None else read_available(pipe.fileno()).decode(errors="replace")
