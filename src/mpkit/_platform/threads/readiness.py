"""Waiting until a file descriptor is readable, whatever its number, and reading what is there."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterable

__all__ = [
    "LONGEST_WAIT_S",
    "MOST_AT_ONCE",
    "never_wait",
    "read_available",
    "wait_any_readable",
    "wait_readable",
]

LONGEST_WAIT_S = 86_400.0
"""A wait is cut off here. The system counts milliseconds in 32 bits, so no wait may last a month."""

# (Libraries of greenlets take it away.)
if sys.platform != "win32" and hasattr(select, "poll"):

    def wait_any_readable(descriptors: Iterable[int], timeout: float | None) -> list[int]:
        """Wait until one of them is readable (or its other end is closed), and say which are.

        Args:
            descriptors: Any; `select.select` takes none from 1024 on. None is opened for it, as by epoll.
            timeout: Seconds, None for ever; a day at the longest.
        """
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        milliseconds = None if timeout is None else min(timeout, LONGEST_WAIT_S) * 1000.0
        return [descriptor for descriptor, _ in poll.poll(milliseconds)]

else:

    def wait_any_readable(descriptors: Iterable[int], timeout: float | None) -> list[int]:
        """Wait until one of them is readable (or its other end is closed), and say which are.

        Args:
            descriptors: Sockets, the only thing that Windows can wait for.
            timeout: Seconds, None for ever; a day at the longest.
        """
        seconds = None if timeout is None else min(timeout, LONGEST_WAIT_S)
        return select.select(list(descriptors), [], [], seconds)[0]


def wait_readable(descriptor: int, timeout: float | None) -> bool:
    """`wait_any_readable` for one of them; whether it is."""
    return bool(wait_any_readable((descriptor,), timeout))


def never_wait(descriptor: int) -> None:
    """Have reading and writing raise BlockingIOError where they would wait (not on Windows)."""
    if sys.platform != "win32":
        os.set_blocking(descriptor, False)


MOST_AT_ONCE = 1 << 20
"""More bytes than a pipe holds: whoever writes as fast as it is read must not keep the reader."""


def read_available(descriptor: int) -> bytes:
    """All that is in a pipe now; nothing where it is empty or has no writer left. Never waits.

    Args:
        descriptor: Its reading end, which has been told to `never_wait`.
    """
    found = b""
    with contextlib.suppress(BlockingIOError):
        while len(found) < MOST_AT_ONCE and (data := os.read(descriptor, 1 << 16)):
            found += data
    return found
