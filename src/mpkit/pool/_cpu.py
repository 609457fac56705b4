"""How much CPU time a process uses, as cheaply as the system tells."""

from __future__ import annotations

import os


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
