"""loky: the executor behind joblib. It has a start method of its own."""

from __future__ import annotations

import importlib

from benchmarks.peers.base import OpenPool
from benchmarks.peers.stdlib import ExecutorPool

DISTRIBUTION = "loky"


class _Pool:
    name = "loky"
    slowness = 4

    def open(self, workers: int, start_method: str) -> OpenPool:
        _ = start_method
        return ExecutorPool(importlib.import_module("loky").ProcessPoolExecutor(workers), workers)


POOLS = (_Pool(),)
