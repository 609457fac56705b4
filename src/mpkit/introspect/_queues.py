"""`queues`: the queues that a process has open."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass

from mpkit._shm.queues.outside import QueueStatistics, read_queue
from mpkit.introspect import _segments
from mpkit.introspect._translate import checked_pid, find


@dataclass(frozen=True)
class QueueSnapshot:
    """One queue at one moment.

    Attributes:
        name: The name of its file, which identifies it in every process.
        pid: The process that created it (and may have ended).
        users: The living processes that have received it, or have put something into it or taken from it.
        statistics: How many items and bytes are in it, and what has happened to it so far.
    """

    name: str
    pid: int
    users: tuple[int, ...]
    statistics: QueueStatistics


def queues(pid: int | None = None) -> list[QueueSnapshot]:
    """Look at every `BoundedQueue` that a process has open, created or received, without affecting it.

    Args:
        pid: The process. None, the default, is the calling process.

    Returns:
        One snapshot for each queue, in the order of their names.

    Raises:
        ProcessGone: There is no such process, or it ended while being looked at.
        AccessDenied: The system does not allow this user to examine it.
        TypeError, ValueError: `pid` is not an integer, or negative.

    Blocking: never.
    Safe from: any thread, any process.

    Examples:
        >>> from mpkit import BoundedQueue
        >>> queue = BoundedQueue(maxsize=10)
        >>> queue.put("spam")
        >>> [found.statistics.size for found in queues()]
        [1]
    """
    process = find(checked_pid(pid))
    found: list[QueueSnapshot] = []
    for segment in _segments.segments_of(process, "queue"):
        made_by = _segments.creator(segment.name)
        if made_by is not None:
            # The process may close it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                seen = read_queue(segment.name, segment.path)
                if seen is not None:
                    statistics, users = seen
                    found.append(QueueSnapshot(segment.name, made_by.pid, users, statistics))
    return found
