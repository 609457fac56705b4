"""The Python stack of a worker: on request while it lives, and what its fault handler wrote when it crashed.

Each worker has a pipe of its own for this, into which `faulthandler` writes: on a signal
(`mpkit.pool._protocol.stack_signal`), from inside the signal handler, so C code that holds the interpreter
lock does not stand in its way; and on a fatal signal. A pipe rather than a file, because its arrival is an
event, and nothing is left on a disk when anybody dies. It does not block the worker: what does not fit is cut
off.
"""

from __future__ import annotations

from collections.abc import Mapping

from mpkit._platform.processes import signalling
from mpkit._platform.signals.handlers_at_work import HandlerWatch, is_caught
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.readiness import MOST_AT_ONCE, read_available, wait_any_readable
from mpkit.pool._engine.lane import Lane
from mpkit.pool._protocol.channel import INITIALIZING, STATE
from mpkit.pool._protocol.stack_signal import STACK_SIGNAL

#: See `read_stacks`.
_QUIET_SECONDS = 0.004


def live_stack(lane: Lane, timeout: float) -> str:
    """The Python stack of a worker now; "" when it does not answer in time (stopped, starting, or gone).

    Blocking: for `timeout` seconds at most, usually a few milliseconds.
    """
    return lane.stack_lock.run(_ask, lane, CLOCK.monotonic() + timeout)


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
        if not signalling.send_signal(worker, STACK_SIGNAL):
            return ""
    except PermissionError:
        # It has become another user's: so it cannot be asked.
        return ""
    return read_stacks({descriptor: handler}, deadline, _QUIET_SECONDS)[descriptor]


def read_stacks(asked: Mapping[int, HandlerWatch], deadline: float, quiet: float) -> dict[int, str]:
    """What comes in the pipes of workers that have been asked, by pipe; "" where nothing has by the deadline.

    They are read together: one that is full would cut its text off.

    Args:
        asked: by the pipe (its reading end, which does not block): what tells whether its worker is writing.
        deadline: on the clock of `time.monotonic`.
        quiet: a stack is over when nothing more has come for so long, unless its worker is still writing.
    """
    texts = dict.fromkeys(asked, b"")
    # Those of workers that have not ended, and of those that have not answered.
    living, silent = set(asked), set(asked)
    while living:
        ready = wait_any_readable(living, max(deadline - CLOCK.monotonic(), 0.0) if silent else quiet)
        for pipe in ready:
            more = read_available(pipe)
            texts[pipe] += more
            silent.discard(pipe)
            if not more or len(texts[pipe]) >= MOST_AT_ONCE:
                # The worker has ended; or it never does: this is no stack.
                living.discard(pipe)
        # One that has lost its core in the middle of it is not done.
        if CLOCK.monotonic() >= deadline or (
            not ready and (silent or not any(handler.is_at_work() for handler in asked.values()))
        ):
            break
    return {pipe: (text + read_available(pipe)).decode(errors="replace") for pipe, text in texts.items()}


def last_words(lane: Lane) -> str:
    """What the fault handler of a dead worker wrote; "" if nothing."""
    with lane.stack_lock:
        pipe = lane.stack_pipe
        return "" if pipe is None else read_available(pipe.fileno()).decode(errors="replace")
