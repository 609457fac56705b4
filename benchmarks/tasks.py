"""What the workers of the pool workloads do: importable, and light to import."""

from __future__ import annotations

import itertools
import os
import time
from typing import Any


def same(item: Any) -> Any:
    """Nothing but the way there and back."""
    return item


def use_cpu(seconds: float) -> None:
    """Work for so many seconds of CPU time: while another process has the core, nothing is worked off."""
    clock = time.thread_time
    end = clock() + seconds
    while clock() < end:
        pass


def use_cpu_timed(seconds: float) -> tuple[int, float, float]:
    """The same; who did it, and from when to when."""
    begin = time.perf_counter()
    use_cpu(seconds)
    return os.getpid(), begin, time.perf_counter()


def sum_of_part(array: Any, number: int) -> float:
    """Read a hundredth of an array."""
    part = len(array) // 100
    return float(array[number * part : (number + 1) * part].sum())


_made: dict[int, Any] = {}


def array_of(size: int) -> Any:
    """An array of `size` bytes, the same at every call: making it does not count."""
    if size not in _made:
        import numpy as np

        _made[size] = np.ones(size // 8)
    return _made[size]


def note_and_sleep(path: str) -> None:
    """Tell in the file `path` who runs this and since when, then sleep."""
    _note(path)
    time.sleep(60)


def note_and_hold(path: str) -> None:
    """The same, then compute in C code that never lets go of the interpreter lock."""
    _note(path)
    sum(itertools.repeat(0, 10**12))


def _note(path: str) -> None:
    with open(path + ".part", "w", encoding="ascii") as file:
        file.write(f"{os.getpid()} {time.perf_counter()!r}")
    os.replace(path + ".part", path)  # appears complete
