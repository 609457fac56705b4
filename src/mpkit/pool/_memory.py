"""How much memory a process uses, as cheaply as the system tells."""

from __future__ import annotations

import os

_PAGE = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 4096


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process, or None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:
            return int(file.read().split()[1]) * _PAGE or None
    except (OSError, IndexError, ValueError):
        pass
    if os.path.isdir("/proc/self"):
        return None
    import psutil  # noqa: PLC0415  only where there is no /proc

    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        return None


def cpu_percent(pid: int, seconds: float) -> float | None:
    """CPU time used so far as a share of `seconds`, in percent, or None if it cannot be read."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            fields = file.read().rpartition(b")")[2].split()
        used = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, IndexError, ValueError):
        if os.path.isdir("/proc/self"):
            return None
        import psutil  # noqa: PLC0415  only where there is no /proc

        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return None
        used = times.user + times.system
    return 100.0 * used / seconds if seconds > 0 else None
