"""What processes use and leave behind, as the system reports it: CPU time, memory, files, shared memory."""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import psutil


def pid() -> int:
    """The pid of this process."""
    return os.getpid()


def parent_pid() -> int:
    """The pid of the process that started this one."""
    return os.getppid()


def family_of(ancestor: int, without: Iterable[int] = ()) -> list[int]:
    """The pids of `ancestor` and all its descendants, except those in `without`."""
    found = [ancestor, *(child.pid for child in psutil.Process(ancestor).children(recursive=True))]
    return [member for member in found if member not in set(without)]


def cpu_seconds(pids: Iterable[int]) -> float:
    """The CPU time that all threads of these processes have used.

    Its resolution is a nanosecond on Linux, and a clock tick elsewhere.
    """
    total = 0.0
    for member in pids:
        tasks = Path(f"/proc/{member}/task")
        if tasks.is_dir():
            for task in tasks.iterdir():
                try:
                    total += int((task / "schedstat").read_text().split()[0]) / 1e9
                except (FileNotFoundError, ProcessLookupError):  # the thread has ended in the meantime
                    continue
        else:
            times = psutil.Process(member).cpu_times()
            total += times.user + times.system
    return total


_SHARED_FILE = re.compile(r"(/dev/shm/\S+)")


def memory_bytes() -> int:
    """The private memory of this process, and the memory that its mapped shared-memory files reserve."""
    text = Path("/proc/self/smaps_rollup").read_text()
    own = next(int(line.split()[1]) for line in text.splitlines() if line.startswith("Anonymous:")) * 1024
    return own + sum(_reserved(name) for name in _mapped_files())


def _mapped_files() -> set[str]:
    return set(_SHARED_FILE.findall(Path("/proc/self/maps").read_text()))


def _reserved(name: str) -> int:
    try:
        return os.stat(name).st_blocks * 512
    except FileNotFoundError:  # the file was unlinked: use its size in this process's memory map
        return _mapped_size(name)


def _mapped_size(name: str) -> int:
    total = 0
    for line in Path("/proc/self/maps").read_text().splitlines():
        if name in line:
            low, high = (int(part, 16) for part in line.split()[0].split("-"))
            total += high - low
    return total


def private_bytes(pids: Iterable[int]) -> int:
    """The private memory of these processes."""
    total = 0
    for member in pids:
        try:
            text = Path(f"/proc/{member}/smaps_rollup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("Private_"))
    return total


def belongings() -> int:
    """How many things this process holds: open files, threads, children, mapped or named shared memory."""
    files = len(os.listdir("/proc/self/fd"))
    children = len(psutil.Process().children())
    named = [name for name in os.listdir("/dev/shm") if f"-{os.getpid()}-" in name]
    return files + threading.active_count() + children + len(_mapped_files()) + len(named)
