"""How many CPUs this process may really use."""

from __future__ import annotations

import contextlib
import math
import os
import sys

from mpkit._platform.resources.cgroups import hierarchies, lines_of

__all__ = ["usable_cpus"]


def usable_cpus() -> int:
    """The number of CPUs this process may really use, at least 1.

    The smallest of: the CPUs of its affinity mask (which includes cpusets), or from Python 3.13 on the number
    that ``-X cpu_count`` or ``PYTHON_CPU_COUNT`` gives in its place; and on Linux the CPU quota of its
    control group and of every group above it, in versions 1 and 2, rounded up. `os.cpu_count` and
    `os.process_cpu_count` know nothing of quotas, so that ``docker run --cpus=2`` on a large machine would
    start one process for each of its CPUs.
    """
    count = _affinity()
    if sys.platform == "linux":
        quota = _quota("/")
        if quota is not None:
            count = min(count, math.ceil(quota))
    return max(1, count)


def _affinity() -> int:
    # OSError: a sandbox does not let it through.
    with contextlib.suppress(OSError):
        if sys.version_info >= (3, 13):
            # It also tells what the user has said.
            return os.process_cpu_count() or 1
        if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: str | os.PathLike[str]) -> float | None:
    """The smallest CPU quota among this process's control groups, in CPUs; None without any.

    Args:
        root: Where the file system begins; tests lay out one of their own.
    """
    quotas = [
        quota
        for version, directories in hierarchies("cpu", root)
        for directory in directories
        if (quota := (_quota_v2 if version == 2 else _quota_v1)(directory)) is not None
    ]
    return min(quotas, default=None)


def _quota_v2(directory: str) -> float | None:
    for line in lines_of(os.path.join(directory, "cpu.max")):
        limit, period = line.split()
        return None if limit == "max" else int(limit) / int(period)
    return None


def _quota_v1(directory: str) -> float | None:
    limit = [int(line) for line in lines_of(os.path.join(directory, "cpu.cfs_quota_us"))]
    period = [int(line) for line in lines_of(os.path.join(directory, "cpu.cfs_period_us"))]
    return limit[0] / period[0] if limit and period and limit[0] > 0 else None
