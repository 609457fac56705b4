"""The states of a pool, in the order of its life."""

from __future__ import annotations

__all__ = ["BROKEN", "CLOSED", "RUNNING", "TERMINATED"]

#: Takes tasks.
RUNNING = "running"
#: Takes none any more; those there are go on.
CLOSED = "closed"
#: Ended by its owner; tasks that were pending have been cancelled.
TERMINATED = "terminated"
#: Its workers cannot be started; tasks that were pending have got the reason.
BROKEN = "broken"
