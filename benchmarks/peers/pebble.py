"""pebble: a pool with time limits."""

from __future__ import annotations

import importlib
import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import OpenPool

DISTRIBUTION = "Pebble"


class _OpenPool(OpenPool):
    def __init__(self, pool: Any, workers: int) -> None:
        self.pool = pool
        self.workers = workers

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        # pebble has only an ordered map, which is the closest.
        results: Iterable[Any] = self.pool.map(function, items, chunksize=1).result()
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        chunk = -(-len(items) // (4 * self.workers))
        return list(self.pool.map(function, items, chunksize=chunk).result())

    def start(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return self.pool.schedule(function, args=arguments)

    def start_limited(self, function: Callable[..., Any], argument: Any, timeout: float) -> Any:
        return self.pool.schedule(function, args=(argument,), timeout=timeout)

    def finish(self, handle: Any) -> Any:
        return handle.result()

    def close(self) -> None:
        self.pool.close()
        self.pool.join()


class _Pool:
    name = "pebble"
    slowness = 2

    def open(self, workers: int, start_method: str) -> OpenPool:
        context = multiprocessing.get_context(start_method)
        return _OpenPool(importlib.import_module("pebble").ProcessPool(workers, context=context), workers)


POOLS = (_Pool(),)
