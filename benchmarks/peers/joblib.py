"""joblib: batches of calls over loky. It chooses their size unless a workload asks for single tasks."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from benchmarks.peers.base import OpenPool

DISTRIBUTION = "joblib"


class _OpenPool(OpenPool):
    def __init__(self, workers: int) -> None:
        self.workers = workers
        self.joblib = importlib.import_module("joblib")
        self.parallel = self._parallel()
        self.parallel.__enter__()

    def _parallel(self, **options: Any) -> Any:
        return self.joblib.Parallel(n_jobs=self.workers, backend="loky", **options)

    def submit_all(self, function: Callable[[Any], Any], items: Sequence[Any]) -> list[Any]:
        call = self.joblib.delayed(function)
        results: list[Any] = self.parallel(call(item) for item in items)
        return results

    def apply(self, function: Callable[[Any], Any], item: Any) -> Any:
        return self.parallel((self.joblib.delayed(function)(item),))[0]

    def imap_unordered(self, function: Callable[[Any], Any], items: Iterable[Any]) -> Iterable[Any]:
        # A second `Parallel`, because the way of returning results is an option of the constructor. Both use
        # the same workers.
        call = self.joblib.delayed(function)
        parallel = self._parallel(return_as="generator_unordered", batch_size=1)
        results: Iterable[Any] = parallel(call(item) for item in items)
        return results

    def map(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Sequence[Any]:
        return self.submit_all(function, items)

    def map_shared(self, function: Callable[..., Any], shared: Any, items: Sequence[Any]) -> list[Any]:
        """Run one task for each item, all with the same large argument, which joblib maps from a file."""
        call = self.joblib.delayed(function)
        results: list[Any] = self.parallel(call(shared, item) for item in items)
        return results

    def close(self) -> None:
        self.parallel.__exit__(None, None, None)
        executor = importlib.import_module("joblib.externals.loky").get_reusable_executor(
            max_workers=self.workers
        )
        executor.shutdown(wait=True, kill_workers=True)


class _Pool:
    name = "joblib"
    slowness = 4

    def open(self, workers: int, start_method: str) -> OpenPool:
        _ = start_method
        return _OpenPool(workers)


POOLS = (_Pool(),)
