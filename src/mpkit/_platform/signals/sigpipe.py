"""Writing to a pipe whose reader may be gone, without dying of it."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator


@contextlib.contextmanager
def discarded_sigpipe() -> Generator[None]:
    """In the block, if this thread writes to a pipe without a reader, a BrokenPipeError is all that happens.

    Python ignores the signal SIGPIPE, but a program may have restored its default, which is to end.
    """
    if sys.platform == "win32":
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGPIPE})
    try:
        yield
    finally:
        if signal.SIGPIPE not in before and signal.SIGPIPE in signal.sigpending():
            if sys.platform == "darwin":
                signal.sigwait({signal.SIGPIPE})
            else:
                # It does not wait: a signal to the whole process may have gone to another thread meanwhile.
                signal.sigtimedwait({signal.SIGPIPE}, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
