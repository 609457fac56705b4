"""Locks and counters, used by one process and by four at once."""

from __future__ import annotations

from typing import Any, Final

from benchmarks.crew import Gate, rate, run_together
from benchmarks.peers import COUNTERS, LOCKS
from benchmarks.queue import context
from benchmarks.workload import AtLeastTimes, Sample, Scale, Workload

VALUE: Final = "multiprocessing.Value"
LOCK: Final = "multiprocessing.Lock"


def _add(gate: Gate, contender: str, counter: Any, count: int) -> None:
    peer = COUNTERS[contender]
    peer.add_many(counter, 100)
    gate.start()
    peer.add_many(counter, count)
    gate.stop()


def additions(contender: str, scale: Scale, *, processes: int) -> Sample:
    """Measure additions per second, of all processes together."""
    peer = COUNTERS[contender]
    each = scale.count(400_000, at_least=20_000) // processes
    with peer.open(context()) as counter:
        reports = run_together(context(), [(_add, (contender, counter, each))] * processes)
        value = peer.value(counter)
    if value != (each + 100) * processes:
        raise AssertionError(f"additions were lost: {value}, not {(each + 100) * processes}")
    return rate(reports, each * processes)


def _cycle(gate: Gate, contender: str, lock: Any, count: int) -> None:
    peer = LOCKS[contender]
    peer.cycle(lock, 100)
    gate.start()
    peer.cycle(lock, count)
    gate.stop()


def cycles(contender: str, scale: Scale, *, processes: int) -> Sample:
    """Measure pairs of acquire and release per second, of all processes together."""
    each = scale.count(400_000, at_least=20_000) // processes
    with LOCKS[contender].open(context()) as lock:
        reports = run_together(context(), [(_cycle, (contender, lock, each))] * processes)
    return rate(reports, each * processes)


def _add_alone(contender: str, scale: Scale) -> Sample:
    return additions(contender, scale, processes=1)


def _add_with_four(contender: str, scale: Scale) -> Sample:
    return additions(contender, scale, processes=4)


def _cycle_alone(contender: str, scale: Scale) -> Sample:
    return cycles(contender, scale, processes=1)


def _cycle_with_four(contender: str, scale: Scale) -> Sample:
    return cycles(contender, scale, processes=4)


_COUNTERS: Final = ("mpkit", VALUE, "ZooLock + RawValue")
_LOCKS: Final = ("mpkit", LOCK, "ZooLock", "bare Python")

WORKLOADS: Final = (
    Workload(
        "counter-alone",
        "counter",
        "add 1, one process",
        "additions/s",
        "higher",
        _add_alone,
        _COUNTERS,
        VALUE,
        (AtLeastTimes(1, VALUE),),
    ),
    Workload(
        "counter-4",
        "counter",
        "add 1, four processes at once",
        "additions/s",
        "higher",
        _add_with_four,
        _COUNTERS,
        VALUE,
        (AtLeastTimes(2, VALUE),),
    ),
    Workload(
        "lock-alone",
        "lock",
        "acquire and release, one process",
        "cycles/s",
        "higher",
        _cycle_alone,
        _LOCKS,
        LOCK,
        (AtLeastTimes(0.1, LOCK),),
    ),
    Workload(
        "lock-4",
        "lock",
        "acquire and release, four processes at once",
        "cycles/s",
        "higher",
        _cycle_with_four,
        _LOCKS,
        LOCK,
        (AtLeastTimes(1, LOCK),),
    ),
)
