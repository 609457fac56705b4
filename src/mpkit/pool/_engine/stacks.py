"""The Python stack of a worker: on request while it lives, or what its fault handler wrote when it crashed.

Each worker has its own pipe for this. `faulthandler` writes into it from inside signal handlers, so this
works even while C code holds the interpreter lock: on a certain signal (`mpkit.pool._protocol.stack_signal`),
and on a fatal one. It is a pipe and not a file, because the arrival of a stack is then an event, and nothing
is left on a disk if a process dies. Writing never blocks the worker: what does not
fit into the pipe is cut off.
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

#: A stack is complete when nothing more has come for so long: see `read_stacks`.
_QUIET_SECONDS = 0.004


def live_stack(lane: Lane, timeout: float) -> str:
    """The Python stack of a worker now; "" if it does not answer in time (it is stopped, starting, or gone).

    Blocking: for `timeout` seconds at most, usually a few milliseconds.
    """
    return lane.stack_lock.run(_ask, lane, CLOCK.monotonic() + timeout)


def _ask(lane: Lane, deadline: float) -> str:
    # Under the lock, because the supervisor closes the pipe of a worker that has ended.
    pipe, worker = lane.stack_pipe, lane.identity
    if pipe is None or STACK_SIGNAL is None or worker is None or lane.words[STATE] < INITIALIZING:
        return ""
    # A task may have removed the handler; then the signal would kill the worker.
    if not is_caught(worker.pid, STACK_SIGNAL):
        return ""
    descriptor = pipe.fileno()
    read_available(descriptor)
    handler = HandlerWatch(worker.pid, STACK_SIGNAL)
    try:
        if not signalling.send_signal(worker, STACK_SIGNAL):
            return ""
    except PermissionError:
        # The worker now belongs to another user (setuid), and cannot be asked.
        return ""
    return read_stacks({descriptor: handler}, deadline, _QUIET_SECONDS)[descriptor]


def read_stacks(asked: Mapping[int, HandlerWatch], deadline: float, quiet: float) -> dict[int, str]:
    """Read the stacks of workers that have been asked for them.

    All pipes are read at the same time, because a text is cut off if its pipe is full.

    Args:
        asked: by pipe (its reading end, which does not block): tells whether the worker is still writing.
        deadline: on the clock of `time.monotonic`.
        quiet: seconds; a stack is complete when nothing more has come for so long, unless
            its worker is still writing.

    Returns:
        The text by pipe; "" if nothing has come by the deadline.
    """
    texts = dict.fromkeys(asked, b"")
    # The pipes of workers that have not ended, and of workers that have not answered yet.
    living, silent = set(asked), set(asked)
    while living:
        ready = wait_any_readable(living, max(deadline - CLOCK.monotonic(), 0.0) if silent else quiet)
        for pipe in ready:
            more = read_available(pipe)
            texts[pipe] += more
            silent.discard(pipe)
            if not more or len(texts[pipe]) >= MOST_AT_ONCE:
                # The worker has ended; or something writes without end, and this is not a stack.
                living.discard(pipe)
        # A worker that has lost its core in the middle of writing is not done, even if nothing comes.
        if CLOCK.monotonic() >= deadline or (
            not ready and (silent or not any(handler.is_at_work() for handler in asked.values()))
        ):
            break
    return {pipe: (text + read_available(pipe)).decode(errors="replace") for pipe, text in texts.items()}


def last_words(lane: Lane) -> str:
    """What the fault handler of a dead worker has written, or ""."""
    with lane.stack_lock:
        pipe = lane.stack_pipe
        return "" if pipe is None else read_available(pipe.fileno()).decode(errors="replace")
