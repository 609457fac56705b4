"""How much CPU time a process has used, read in the cheapest way that the system offers."""

from __future__ import annotations

import os
import sys

if sys.platform == "linux":
    from mpkit._platform.processes import stat_file

    def cpu_seconds(pid: int) -> float | None:
        """The CPU time of a process in seconds, in user and kernel mode; None if it cannot be read."""
        try:
            fields = stat_file.fields_of(pid)
        except OSError:
            return None
        ticks = int(fields[stat_file.USER_TICKS]) + int(fields[stat_file.SYSTEM_TICKS])
        return ticks / os.sysconf("SC_CLK_TCK")

else:

    def cpu_seconds(pid: int) -> float | None:
        """The CPU time of a process in seconds, in user and kernel mode; None if it cannot be read."""
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        try:
            times = psutil.Process(pid).cpu_times()
        except psutil.Error:
            return None
        return times.user + times.system
