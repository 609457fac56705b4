"""Waiting until a file descriptor is readable, whatever its number, and reading what is there."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterable

LONGEST_WAIT_SECONDS = 86_400.0
"""The longest single wait. The system counts milliseconds in 32 bits, so a wait must not last a month."""

# Greenlet libraries remove `select.poll`.
if sys.platform != "win32" and hasattr(select, "poll"):

    def wait_any_readable(descriptors: Iterable[int], timeout: float | None) -> list[int]:
        """Wait until a descriptor is readable (or its other end is closed); return those that are.

        Args:
            descriptors: Any numbers (`select.select` accepts none from 1024 on). This opens no descriptor,
                unlike epoll.
            timeout: How many seconds to wait at most, cut to a day; None: no limit.
        """
        poll = select.poll()
        for descriptor in descriptors:
            poll.register(descriptor, select.POLLIN)
        milliseconds = None if timeout is None else min(timeout, LONGEST_WAIT_SECONDS) * 1000.0
        return [descriptor for descriptor, _ in poll.poll(milliseconds)]

else:

    def wait_any_readable(descriptors: Iterable[int], timeout: float | None) -> list[int]:
        """Wait until a descriptor is readable (or its other end is closed); return those that are.

        Args:
            descriptors: Sockets; on Windows there is nothing else to wait for.
            timeout: How many seconds to wait at most, cut to a day; None: no limit.
        """
        seconds = None if timeout is None else min(timeout, LONGEST_WAIT_SECONDS)
        return select.select(list(descriptors), [], [], seconds)[0]


def wait_readable(descriptor: int, timeout: float | None) -> bool:
    """`wait_any_readable` for a single descriptor; whether it is readable."""
    return bool(wait_any_readable((descriptor,), timeout))


def never_wait(descriptor: int) -> None:
    """Make a descriptor non-blocking: reading and writing raise BlockingIOError instead (not on Windows)."""
    if sys.platform != "win32":
        os.set_blocking(descriptor, False)


MOST_AT_ONCE = 1 << 20
"""How many bytes `read_available` reads at most (about), so that a fast writer cannot keep it for ever.

This is more than a pipe holds."""


def read_available(descriptor: int) -> bytes:
    """All that is in a pipe now; empty if there is nothing, or no writer is left. Never blocks.

    Args:
        descriptor: The reading end, made non-blocking by `never_wait`.
    """
    found = b""
    with contextlib.suppress(BlockingIOError):
        while len(found) < MOST_AT_ONCE and (data := os.read(descriptor, 1 << 16)):
            found += data
    return found
