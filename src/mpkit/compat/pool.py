"""`multiprocessing.pool`, but with mpkit's `Pool`, its results, and the cause of its errors."""

from __future__ import annotations

import multiprocessing.pool
from multiprocessing.pool import ThreadPool
from typing import Any

from mpkit._wire.failure import RemoteTraceback
from mpkit.compat._iterators import IMapIterator
from mpkit.compat._pool import AsyncResult, MapResult, Pool

__all__ = ["ApplyResult", "AsyncResult", "IMapIterator", "MapResult", "Pool", "RemoteTraceback", "ThreadPool"]

ApplyResult = AsyncResult


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is there
    return getattr(multiprocessing.pool, name)
