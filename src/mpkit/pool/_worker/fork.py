"""What a process does that a task has forked: it is not a worker, and nothing
that it does may reach the pool.

It has inherited the worker's rings, whose ends must be used by one process only; the worker's log handler,
fault handler and SIGINT handler; and, after a bare `os.fork`, its stack, with the
worker's loop at the bottom.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from typing import NoReturn

from mpkit.pool._protocol.stack_signal import STACK_SIGNAL


def end_fork(error: BaseException | None) -> NoReturn:
    """End this process with the exit code that it would have if the task were a program.

    Exit handlers are not called, because they are the worker's; threads are not waited for.

    Args:
        error: what the task has raised in this process; None: it has returned.
    """
    code = 0
    try:
        if isinstance(error, SystemExit):
            code = error.code & 0xFF if isinstance(error.code, int) else int(error.code is not None)
            if code and not isinstance(error.code, int) and sys.stderr is not None:
                sys.stderr.write(f"{error.code}\n")
        elif error is not None:
            code = 1
            sys.excepthook(type(error), error, error.__traceback__)
        for stream in (sys.stdout, sys.stderr):
            # It may be closed, or a pipe that nobody reads.
            with contextlib.suppress(ValueError, OSError):
                if stream is not None:
                    stream.flush()
    finally:
        os._exit(code)


def give_up_stack_pipe(*, reports_to_stderr: bool) -> None:
    """Stop writing stacks into the pipe, which belongs to the worker.

    Args:
        reports_to_stderr: whether the fault handler was enabled before the worker redirected it to the pipe.
    """
    if STACK_SIGNAL is not None and hasattr(faulthandler, "unregister"):
        faulthandler.unregister(STACK_SIGNAL)
    faulthandler.disable()
    if reports_to_stderr:
        # There may be no usable standard error.
        with contextlib.suppress(AttributeError, RuntimeError, ValueError, OSError):
            faulthandler.enable()
