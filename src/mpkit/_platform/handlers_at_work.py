"""Whether another process is still inside the handler of a signal."""

from __future__ import annotations

import os
import sys

__all__ = ["HandlerWatch", "threads_that_block"]

if sys.platform == "linux":

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
            thread for thread in threads if _blocked_in(f"/proc/{pid}/task/{thread}/status") & bit
        )

    def _blocked_in(path: str) -> int:
        """The signals that a thread has blocked, a bit for each."""
        try:
            with open(path, "rb", buffering=0) as file:
                text = file.read(8192)
        except OSError:
            return 0
        _, found, rest = text.partition(b"\nSigBlk:")
        return int(rest.split(maxsplit=1)[0], 16) if found else 0

else:

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
