"""Whether another process is still inside a signal handler, for example one that writes its stacks."""

from __future__ import annotations

import os
import sys

if sys.platform == "linux":

    def is_caught(pid: int, signum: int) -> bool:
        """Whether a process has a handler for a signal, which might otherwise end it; True if not known."""
        caught = _signals_in(f"/proc/{pid}/status", b"SigCgt")
        return caught is None or bool(caught & 1 << (signum - 1))

    def threads_that_block(pid: int, signum: int) -> frozenset[str]:
        """The threads (by number) of a process that have a signal blocked.

        These include threads inside the handler of the signal: the kernel blocks a signal while it is
        handled, unless the handler was set with `SA_NODEFER`. The result is empty if the process has ended or
        is hidden, or no descriptor is left.
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
        """A set of signals in a status file, one bit for each; None if it cannot be read."""
        try:
            with open(path, "rb", buffering=0) as file:
                text = file.read(8192)
        except OSError:
            return None
        _, found, rest = text.partition(b"\n" + what + b":")
        return int(rest.split(maxsplit=1)[0], 16) if found else None

else:

    def is_caught(pid: int, signum: int) -> bool:  # noqa: ARG001  as above
        """Whether a process has a handler for a signal; always True here, as this cannot be found out."""
        return True

    def threads_that_block(pid: int, signum: int) -> frozenset[str]:  # noqa: ARG001  as above
        """The threads of a process that have a signal blocked; none here, as this cannot be found out."""
        return frozenset()


class HandlerWatch:
    """Tells whether a process is still inside the handler of a signal. Created before the signal is sent.

    Args:
        pid: The pid of the process.
        signum: The signal.
    """

    def __init__(self, pid: int, signum: int) -> None:
        self._pid = pid
        self._signum = signum
        # Threads that have the signal blocked anyway.
        self._deaf = threads_that_block(pid, signum)

    def is_at_work(self) -> bool:
        """Whether a thread is inside the handler now; False if that cannot be found out."""
        return bool(threads_that_block(self._pid, self._signum) - self._deaf)
