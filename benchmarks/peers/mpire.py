"""mpire: a pool with worker state and progress bars."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.stdlib import StdlibPool

DISTRIBUTION = "mpire"


class _OpenPool(StdlibPool):
    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        results: Iterable[Any] = self.pool.imap_unordered(function, list(items), chunk_size=1)
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        results: Sequence[Any] = self.pool.map(function, items, concatenate_numpy_output=False)
        return results

    def start_limited(self, function: Callable[..., Any], argument: Any, timeout: float) -> Any:
        return self.pool.apply_async(function, (argument,), task_timeout=timeout)

    def close(self) -> None:
        self.pool.stop_and_join()


class _Pool:
    name = "mpire"
    slowness = 2

    def open(self, workers: int, start_method: str) -> StdlibPool:
        # Without `keep_alive`, mpire starts new workers for each call.
        kind = importlib.import_module("mpire").WorkerPool
        return _OpenPool(kind(workers, start_method=start_method, keep_alive=True))


POOLS = (_Pool(),)
