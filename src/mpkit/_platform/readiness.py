"""Waiting until a file descriptor is readable, whatever its number, and reading what is there."""

from __future__ import annotations

import contextlib
import os
import select

__all__ = ["LONGEST_WAIT_S", "MOST_AT_ONCE", "read_available", "wait_readable"]

LONGEST_WAIT_S = 86_400.0
"""A wait is cut off here. The system counts milliseconds in 32 bits, so no wait may last a month."""

if hasattr(select, "poll"):

    def wait_readable(descriptor: int, timeout: float | None) -> bool:
        """Wait until `descriptor` is readable (or its other end is closed), and say whether it is.

        Args:
            descriptor: Any; `select.select` takes none from 1024 on.
            timeout: Seconds, None for ever; a day at the longest.
        """
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        return bool(poll.poll(None if timeout is None else min(timeout, LONGEST_WAIT_S) * 1000.0))

else:

    def wait_readable(descriptor: int, timeout: float | None) -> bool:
        """Wait until `descriptor` is readable (or its other end is closed), and say whether it is.

        Args:
            descriptor: A socket, the only thing that Windows can wait for.
            timeout: Seconds, None for ever; a day at the longest.
        """
        return bool(
            select.select([descriptor], [], [], None if timeout is None else min(timeout, LONGEST_WAIT_S))[0]
        )


MOST_AT_ONCE = 1 << 20
"""More bytes than a pipe holds: whoever writes as fast as it is read must not keep the reader."""


def read_available(descriptor: int) -> bytes:
    """All that is in a pipe now; nothing where it is empty or has no writer left. Never waits.

    Args:
        descriptor: Its reading end, which does not block (`os.set_blocking`).
    """
    found = b""
    with contextlib.suppress(BlockingIOError):
        while len(found) < MOST_AT_ONCE and (data := os.read(descriptor, 1 << 16)):
            found += data
    return found
