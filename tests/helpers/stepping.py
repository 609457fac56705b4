"""Interrupting a thread at any step of an operation, without luck of timing."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import sys
from collections.abc import Callable, Iterator

import pytest

from tests.helpers.dying import TRACED, trace

#: For tests with `interrupt_at`. On Python 3.11, and on no other one, an exception that a trace function
#: raises now and then leaves the stack of the interpreter in disorder: it calls frames ("'frame' object is
#: not callable" at the first line of a function), or crashes. One run in three of
#: tests/unit/shm/test_interrupts.py did so on 3.11.7.
needs_a_trace_that_raises = pytest.mark.skipif(
    sys.version_info[:2] == (3, 11), reason="exceptions of trace functions upset Python 3.11 itself"
)

#: The code that starts processes.
STARTING = tuple(
    os.sep + os.path.join(*part)
    for part in (
        ("mpkit", "process", ""),
        ("mpkit", "_platform", "stdlib", "child_"),
        ("mpkit", "_platform", "parent_death", ""),
        ("mpkit", "_platform", "files", "anonymous.py"),
        ("mpkit", "_platform", "files", "descriptors.py"),
        ("multiprocessing", "popen_"),
        ("multiprocessing", "process.py"),
        ("multiprocessing", "forkserver.py"),
    )
)


@contextlib.contextmanager
def without_collections() -> Iterator[None]:
    """For a test whose one signal has a handler that raises: a collection would call destructors of what
    earlier tests have left (and what Hypothesis has asked for), and Python drops what is raised in those.
    """
    collects = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collects:
            gc.enable()


def interrupt_at(
    step: int,
    operation: Callable[[], object],
    *,
    opcodes: bool = False,
    traced: tuple[str, ...] = TRACED,
    times: int = 1,
    signum: signal.Signals = signal.SIGINT,
    raises: type[BaseException] = KeyboardInterrupt,
) -> bool:
    """Run `operation` and send Ctrl-C to this process, in the main thread, at step number `step`, from 0.

    Args:
        step: A line is one.
        operation: What to run. A fork that it makes gets none.
        opcodes: An opcode is a step, not a line.
        traced: Only code in files whose paths have one of these in them is counted.
        times: At so many steps, one after the other. (If one raises at its step it is the last.)
        signum: Another signal than that of Ctrl-C.
        raises: What its handler raises.

    Returns:
        Whether that step was reached.
    """
    reached = False
    me = os.getpid()

    def interrupt() -> None:
        nonlocal reached
        if os.getpid() != me:
            return
        reached = True
        # The handler raises here, in the middle of the line, unless it is being deferred.
        signal.raise_signal(signum)

    before = sys.gettrace()
    with without_collections():
        try:
            trace(step, opcodes, interrupt, traced, times)
            operation()
        except raises:
            assert reached
        finally:
            sys.settrace(before)
    # An exception in a `__del__` goes no further, so that the outcome does not tell.
    return reached
