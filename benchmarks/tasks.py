"""The tasks of the pool workloads. A module of its own, which workers can import quickly."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any


def same(item: Any) -> Any:
    """Return the item: what is measured is the way there and back."""
    return item


def use_cpu(seconds: float) -> None:
    """Use so many seconds of CPU time: time in which another process has the core does not count."""
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass


def use_cpu_timed(seconds: float) -> tuple[int, float, float]:
    """Do the same; return the pid, and when it began and ended."""
    begin = time.perf_counter()
    use_cpu(seconds)
    return os.getpid(), begin, time.perf_counter()


def sum_of_part(array: Any, number: int) -> float:
    """Read a hundredth of an array."""
    part = len(array) // 100
    return float(array[number * part : (number + 1) * part].sum())


_made: dict[int, Any] = {}


def array_of(size: int) -> Any:
    """The same array of `size` bytes at every call, so that making it is not measured."""
    if size not in _made:
        import numpy as np

        _made[size] = np.ones(size // 8)
    return _made[size]


def note_and_sleep(path: str) -> None:
    """Write the pid and the time into the file `path`, then sleep."""
    _note(path)
    time.sleep(60)


def note_and_hold(path: str) -> None:
    """Write the same, then compute in C code that never releases the interpreter lock."""
    _note(path)
    sum(itertools.repeat(0, 10**12))


def _note(path: str) -> None:
    with open(path + ".part", "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {time.perf_counter()!r}")
    os.replace(path + ".part", path)  # so that the file appears with its content
