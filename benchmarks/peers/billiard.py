"""billiard: Celery's branch of multiprocessing."""

from __future__ import annotations

import importlib

from benchmarks.peers.stdlib import StdlibPool

DISTRIBUTION = "billiard"


class _Pool:
    name = "billiard"
    slowness = 1

    def open(self, workers: int, start_method: str) -> StdlibPool:
        context = importlib.import_module("billiard").get_context(start_method)
        return StdlibPool(context.Pool(workers))


POOLS = (_Pool(),)
