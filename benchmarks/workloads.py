"""Every workload, in the order of the tables."""

from __future__ import annotations

from typing import Final

from benchmarks import arrays, imports, pool, queue, sync
from benchmarks.workload import Workload

#: The areas that the command line accepts.
AREAS: Final = ("queue", "arrays", "counter", "lock", "pool", "imports")

WORKLOADS: Final[dict[str, Workload]] = {
    workload.name: workload
    for workload in (
        *queue.WORKLOADS,
        *arrays.WORKLOADS,
        *sync.WORKLOADS,
        *pool.WORKLOADS,
        *imports.WORKLOADS,
    )
}
