"""How many CPUs this process may really use."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["usable_cpus"]


def usable_cpus() -> int:
    """The number of CPUs this process may really use, at least 1.

    The smallest of: the CPUs of its affinity mask (which includes cpusets), and on Linux the CPU quota of its
    control group and of every group above it, in versions 1 and 2, rounded up. `os.cpu_count` and
    `os.process_cpu_count` know nothing of quotas, so that ``docker run --cpus=2`` on a large machine would
    start one process for each of its CPUs.
    """
    count = _affinity()
    if sys.platform == "linux":
        quota = _quota(Path("/"))
        if quota is not None:
            count = min(count, math.ceil(quota))
    return max(1, count)


def _affinity() -> int:
    if sys.platform != "win32" and hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(root: Path) -> float | None:
    """The smallest CPU quota among this process's control groups, in CPUs; None without any.

    Args:
        root: Where the file system begins; tests lay out one of their own.
    """
    quotas = [
        quota
        for base, group, version in _groups(root)
        for directory in _upwards(base, group)
        if (quota := (_quota_v2 if version == 2 else _quota_v1)(directory)) is not None
    ]
    return min(quotas, default=None)


def _groups(root: Path) -> Iterator[tuple[Path, PurePosixPath, int]]:
    """Where the hierarchies with CPU control are mounted, this process's group in each, and the version."""
    own: dict[str, PurePosixPath] = {}
    for line in _lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            own[controller] = PurePosixPath(path)
    for line in _lines(root / "proc/self/mountinfo"):
        # See proc(5): ... root, mount point, options, optional fields, "-", type, source, super options.
        before, _, after = line.partition(" - ")
        mounted, (kind, _, options) = before.split(" "), after.split(" ", 2)
        if kind == "cgroup2":
            controller, version = "", 2
        elif kind == "cgroup" and "cpu" in options.split(","):
            controller, version = "cpu", 1
        else:
            continue
        if controller in own:
            yield root / _unescape(mounted[4]).lstrip("/"), _below(own[controller], mounted[3]), version


def _below(group: PurePosixPath, mounted: str) -> PurePosixPath:
    """The group's path below the mount point; a container often has only its own part mounted."""
    top = PurePosixPath(_unescape(mounted))
    if group.is_relative_to(top):
        return group.relative_to(top)
    # The group's path is that of another namespace ("/../.."): what is mounted is all that can be read.
    return PurePosixPath()


def _upwards(base: Path, group: PurePosixPath) -> Iterator[Path]:
    """The group's directory and all above it up to the mount point: a quota limits everything below it."""
    parts = [part for part in group.parts if part not in ("/", "..")]
    for length in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:length])


def _quota_v2(directory: Path) -> float | None:
    for line in _lines(directory / "cpu.max"):
        limit, period = line.split()
        return None if limit == "max" else int(limit) / int(period)
    return None


def _quota_v1(directory: Path) -> float | None:
    limit = [int(line) for line in _lines(directory / "cpu.cfs_quota_us")]
    period = [int(line) for line in _lines(directory / "cpu.cfs_period_us")]
    return limit[0] / period[0] if limit and period and limit[0] > 0 else None


def _unescape(path: str) -> str:
    """Mount points have their blanks as octal escapes."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        # Not mounted, or not for us to read: no limit that we could know of.
        return []
