"""How much memory a process uses, and whether the out-of-memory killer was at work."""

from __future__ import annotations

import functools
import os
import sys

from mpkit._platform.resources.cgroups import hierarchies, lines_of

if sys.platform == "linux":
    _PAGE = os.sysconf("SC_PAGE_SIZE")

    def rss_bytes(pid: int) -> int | None:
        """The resident memory of a process, shared pages included; None when it cannot be read (any more)."""
        try:
            with open(f"/proc/{pid}/statm", "rb", buffering=0) as file:
                return int(file.read(256).split()[1]) * _PAGE
        except (OSError, IndexError):
            # IndexError: if the process ends between opening and reading the file, the file is empty.
            return None

else:

    def rss_bytes(pid: int) -> int | None:
        """The resident memory of a process, shared pages included; None when it cannot be read (any more)."""
        import psutil  # noqa: PLC0415  importing mpkit must not load it

        try:
            return int(psutil.Process(pid).memory_info().rss)
        except psutil.Error:
            return None


def oom_kills(root: str | os.PathLike[str] = "/") -> int | None:
    """How often the out-of-memory killer has acted where it could have hit this process or a child.

    The number is to be compared with a later one. It counts this process's memory control group and those
    below it; if that has no count, the whole machine.

    Args:
        root: The root of the file system; tests use one of their own.

    Returns:
        The number; None if the system does not count this (not Linux, or too old a kernel).
    """
    counter = _counter(os.fspath(root))
    return None if counter is None else _count_in(counter)


def oom_killed_since(before: int | None) -> bool:
    """Whether it has acted since `oom_kills` returned `before`; False if that is not known."""
    return before is not None and (oom_kills() or 0) > before


@functools.cache
def _counter(root: str) -> str | None:
    """The path of the file with the narrowest count.

    (Cached, because a process rarely changes its group; if it does, the count of the former one is still a
    count.)
    """
    candidates: list[str] = []
    if sys.platform == "linux":
        candidates += [
            os.path.join(directories[0], "memory.events" if version == 2 else "memory.oom_control")
            for version, directories in hierarchies("memory", root)
            if len(directories) > 1  # the root group does not count in version 2
        ]
        candidates.append(os.path.join(root, "proc/vmstat"))
    return next((path for path in candidates if _count_in(path) is not None), None)


def _count_in(path: str) -> int | None:
    for line in lines_of(path):
        name, _, value = line.partition(" ")
        if name == "oom_kill":
            return int(value)
    return None
