"""A process that a task forks is no worker: nothing that it does may reach the pool.

It has the worker's rings, of which each end belongs to one process; its log handler, its fault handler and
its handler of SIGINT; and, after a bare `os.fork`, its stack, with the worker's loop at the bottom.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
from typing import NoReturn

from mpkit.pool._protocol.stack_signal import STACK_SIGNAL


def end_fork(error: BaseException | None) -> NoReturn:
    """End this process with the exit code that the interpreter would give it if the task were its program.

    Exit handlers are not called, being the worker's; its threads are not waited for.

    Args:
        error: what the task raised here; None: it has returned.
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
            # Closed, or a pipe that nobody reads.
            with contextlib.suppress(ValueError, OSError):
                if stream is not None:
                    stream.flush()
    finally:
        os._exit(code)


def give_up_stack_pipe(*, reports_to_stderr: bool) -> None:
    """Write no stack into the pipe any more, which is the worker's.

    Args:
        reports_to_stderr: the program had the fault handler on before the worker took it.
    """
    if STACK_SIGNAL is not None and hasattr(faulthandler, "unregister"):
        faulthandler.unregister(STACK_SIGNAL)
    faulthandler.disable()
    if reports_to_stderr:
        # There may be none.
        with contextlib.suppress(AttributeError, RuntimeError, ValueError, OSError):
            faulthandler.enable()
