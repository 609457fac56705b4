"""Whether another process is still inside the handler of a signal: one that writes its stacks, say."""

from __future__ import annotations

import os
import sys

__all__ = ["HandlerWatch", "is_caught", "threads_that_block"]

if sys.platform == "linux":

    def is_caught(pid: int, signum: int) -> bool:
        """Whether a process has a handler for a signal, which might end it otherwise. True where that cannot
        be told.
        """
        caught = _signals_in(f"/proc/{pid}/status", b"SigCgt")
        return caught is None or bool(caught & 1 << (signum - 1))

    def threads_that_block(pid: int, signum: int) -> frozenset[str]:
        """The threads of a process that a signal is kept from, by number. One that is in its handler is among
        them: the kernel keeps a signal away while it is handled (unless `SA_NODEFER` was asked for).

        None of them where that cannot be told: the process has ended or is hidden, no descriptor is left.
        """
        bit = 1 << (signum - 1)
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError:
            return frozenset()
        return frozenset(
            thread
            for thread in threads
            if (_signals_in(f"/proc/{pid}/task/{thread}/status", b"SigBlk") or 0) & bit
        )

    def _signals_in(path: str, what: bytes) -> int | None:
        """The signals that stand there, a bit for each; None where that cannot be told."""
        try:
            with open(path, "rb", buffering=0) as file:
                text = file.read(8192)
        except OSError:
            return None
        _, found, rest = text.partition(b"\n" + what + b":")
        return int(rest.split(maxsplit=1)[0], 16) if found else None

else:

    def is_caught(pid: int, signum: int) -> bool:  # noqa: ARG001  as above
        """Whether a process has a handler for a signal: not known here."""
        return True

    def threads_that_block(pid: int, signum: int) -> frozenset[str]:  # noqa: ARG001  as above
        """The threads of a process that a signal is kept from: not known here, so none."""
        return frozenset()


class HandlerWatch:
    """Tells whether a process is still inside the handler of a signal. Made before the signal is sent.

    Args:
        pid: Of the process.
        signum: The signal.
    """

    def __init__(self, pid: int, signum: int) -> None:
        self._pid = pid
        self._signum = signum
        # Somebody's threads may never hear of it.
        self._deaf = threads_that_block(pid, signum)

    def is_at_work(self) -> bool:
        """Whether a thread is inside the handler now. False where that cannot be told."""
        return bool(threads_that_block(self._pid, self._signum) - self._deaf)
