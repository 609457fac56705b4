"""A process that has hardly any descriptors left, as a server with too many connections."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["open_descriptors", "spare_descriptors"]

#: So many numbers at least are left free before they are taken.
_ROOM = 64


def open_descriptors() -> int:
    """How many there are."""
    # One of them is that of the list.
    return len(os.listdir("/proc/self/fd")) - 1


@contextmanager
def spare_descriptors(number: int) -> Generator[None]:
    """While the block runs, this process (and what it forks) can have so many more, and not one more."""
    import resource  # POSIX only

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    null = os.open(os.devnull, os.O_RDONLY)
    taken = [null]
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + number + _ROOM, hard))
    try:
        try:
            while True:
                taken.append(os.dup(null))
        except OSError:
            for _ in range(number):
                os.close(taken.pop())
        yield
    finally:
        for descriptor in taken:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
