"""Large data through a queue: one process puts it, another one receives and reads all of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from benchmarks.crew import Gate, rate, run_together
from benchmarks.peers import QUEUES
from benchmarks.peers.base import QueueEnds, Room
from benchmarks.queue import STDLIB, context
from benchmarks.workload import AtLeastTimes, Sample, Scale, Target, Workload

CONTENDERS: Final = (
    "mpkit",
    STDLIB,
    "SimpleQueue",
    "faster-fifo",
    "dejaq",
    "dejaq (callback)",
    "py-sharedmemory",
    "ZooQueue",
)
#: How fast one core copies memory. A contender whose receiver gets private data cannot be faster.
COPY: Final = "memory copy"

#: The bound of the queue. The putter uses more buffers than this in turn, because a feeder thread may pickle
#: an item later than `put` returns.
_BOUND: Final = 3
_SOURCES: Final = _BOUND + 2

Batch = Any  # an array, or a dict of them


def one_array(size: int) -> Batch:
    """An array of `size` bytes whose first number is the serial number of the item."""
    return np.ones(size // 8)


def dict_of_arrays(size: int) -> Batch:
    """Ten arrays in a dict, `size` bytes together; the first number of the first is the serial number."""
    return {f"column {number}": np.ones(size // 80) for number in range(10)}


def stamp(batch: Batch, number: int) -> None:
    """Write the serial number into the item."""
    (batch["column 0"] if isinstance(batch, dict) else batch)[0] = number


def read(batch: Batch) -> float:
    """Read the whole item, and return the sum of its numbers."""
    if isinstance(batch, dict):
        return float(sum(array.sum() for array in batch.values()))
    return float(batch.sum())


def _put_batches(gate: Gate, ends: QueueEnds, make: Callable[[int], Batch], size: int, count: int) -> None:
    put = ends.putter()
    sources = [make(size) for _ in range(_SOURCES)]
    for number in range(_BOUND + 1):
        stamp(sources[number], number)
        put(sources[number])
    gate.start()
    for number in range(count):
        source = sources[number % _SOURCES]
        stamp(source, number)
        put(source)
    gate.stop()
    ends.finish()


def _get_batches(gate: Gate, ends: QueueEnds, size: int, count: int) -> None:
    reader = getattr(ends, "reader", None)
    if reader is not None:
        take = reader(read)
    else:
        get = ends.getter()

        def take() -> float:
            return read(get())

    plain = size // 8 - 1
    for _ in range(_BOUND + 1):
        take()
    gate.start()
    for number in range(count):
        total = take()
        if total != plain + number:
            raise AssertionError(f"item {number} arrived damaged: its sum is {total}, not {plain + number}")
    gate.stop()


def throughput(
    contender: str, scale: Scale, *, make: Callable[[int], Batch], size: int, full_bytes: float
) -> Sample:
    """Measure GB/s received and read."""
    if contender == COPY:
        return memory_copy(size)
    peer = QUEUES[contender]
    count = scale.count(int(full_bytes / size / peer.slowness), at_least=4)
    if contender in _SLOW:
        count = max(count // 8, 3)
    size = size // 80 * 80
    ends = peer.open(context(), Room(items=_BOUND, item_bytes=size))
    reports = run_together(
        context(), [(_put_batches, (ends, make, size, count)), (_get_batches, (ends, size, count))]
    )
    ends.close()
    per_second = rate(reports, count)
    return Sample(per_second.value * size / 1e9, per_second.detail)


#: Contenders that send everything through a pipe.
_SLOW: Final = frozenset({STDLIB, "SimpleQueue"})


def memory_copy(size: int) -> Sample:
    """Measure GB/s of copying `size` bytes, between two blocks of memory whose pages are already there."""
    source, target = np.ones(size // 8), np.zeros(size // 8)
    seconds = []
    for _ in range(max(3, int(300e6 / size))):
        begin = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - begin)
    return Sample(size / statistics.median(seconds) / 1e9)


def _row(
    name: str,
    title: str,
    make: Callable[[int], Batch],
    size: int,
    full_bytes: float,
    *more: Target,
    rounds: int = 99,
) -> Workload:
    def run(contender: str, scale: Scale) -> Sample:
        return throughput(contender, scale, make=make, size=size, full_bytes=full_bytes)

    targets = (AtLeastTimes(2, "dejaq"), AtLeastTimes(20, STDLIB), *more)
    return Workload(
        name,
        "arrays",
        title,
        "GB/s",
        "higher",
        run,
        (*CONTENDERS, COPY),
        STDLIB,
        targets,
        rounds,
        timeout=120.0,
    )


WORKLOADS: Final = (
    _row("array-1mb", "numpy arrays of 1 MB, received and read", one_array, 1_000_000, 2e9),
    # The target of 8 GB/s is for a machine that copies memory at 12 GB/s.
    _row(
        "array-10mb",
        "numpy arrays of 10 MB, received and read",
        one_array,
        10_000_000,
        3e9,
        AtLeastTimes(8 / 12, COPY),
    ),
    _row("array-100mb", "numpy arrays of 100 MB, received and read", one_array, 100_000_000, 4e9, rounds=5),
    _row("dict-of-arrays", "dicts of ten arrays of 1 MB, received and read", dict_of_arrays, 10_000_000, 3e9),
)
