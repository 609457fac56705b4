"""`multiprocessing.synchronize`, but with mpkit's `Lock`, which can be created without a ``ctx``."""

from __future__ import annotations

import multiprocessing.synchronize
from multiprocessing.synchronize import Barrier, BoundedSemaphore, Condition, Event, RLock, Semaphore
from typing import Any

from mpkit.compat._locks import Lock

__all__ = ["Barrier", "BoundedSemaphore", "Condition", "Event", "Lock", "RLock", "Semaphore"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is there
    return getattr(multiprocessing.synchronize, name)
