"""`multiprocessing.queues`, but with mpkit's queues, which can be created without a ``ctx``."""

from __future__ import annotations

import multiprocessing.queues
from queue import Empty, Full
from typing import Any

from mpkit.compat._queues import JoinableQueue, Queue, SimpleQueue

__all__ = ["Empty", "Full", "JoinableQueue", "Queue", "SimpleQueue"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is there
    return getattr(multiprocessing.queues, name)
