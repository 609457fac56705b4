"""How many CPUs this process may really use."""

from __future__ import annotations

import contextlib
import math
import os
import sys

from mpkit._platform.resources.cgroups import hierarchies, lines_of


def usable_cpus() -> int:
    """The number of CPUs this process may really use, at least 1.

    It is the smallest of these: the CPUs of its affinity mask (which includes cpusets), or from Python 3.13
    on the number that ``-X cpu_count`` or ``PYTHON_CPU_COUNT`` sets instead; and on Linux, rounded up, the
    CPU quota of its control group and of every group above it, in versions 1 and 2. `os.cpu_count` and
    `os.process_cpu_count` ignore quotas: under ``docker run --cpus=2`` on a large machine there would be one
    process for each of its CPUs.
    """
    count = _affinity()
    if sys.platform == "linux":
        quota = _quota("/")
        if quota is not None:
            count = min(count, math.ceil(quota))
    return max(1, count)


def _affinity() -> int:
    # OSError: a sandbox may refuse the system call.
    with contextlib.suppress(OSError):
        if sys.version_info >= (3, 13):
            # This includes the number that the user has set.
            return os.process_cpu_count() or 1
        if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
            return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: str | os.PathLike[str]) -> float | None:
    """The smallest CPU quota among this process's control groups, in CPUs; None if there is none.

    Args:
        root: The root of the file system; tests use one of their own.
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
