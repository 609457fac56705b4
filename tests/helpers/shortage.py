"""Leave a process hardly any file descriptors, as in a server with too many connections."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

__all__ = ["open_descriptors", "spare_descriptors"]

#: The limit is set at least this far above the highest descriptor; then all but the spare ones are used up.
_ROOM = 64


def open_descriptors() -> int:
    """How many descriptors this process has open."""
    # One entry is the descriptor that reads the directory.
    return len(os.listdir("/proc/self/fd")) - 1


@contextmanager
def spare_descriptors(number: int) -> Generator[None]:
    """While the block runs, this process and its forks can open exactly `number` more descriptors."""
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
