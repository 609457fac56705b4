"""Queues: small items between several processes, round trips, and the cost of an idle queue and of many."""

from __future__ import annotations

import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from multiprocessing.context import BaseContext
from typing import Any, Final

from benchmarks import system
from benchmarks.crew import Gate, Report, rate, run_together
from benchmarks.peers import QUEUES
from benchmarks.peers.base import QueueEnds, Room, Unsupported
from benchmarks.workload import BEST, AtLeastTimes, Sample, Scale, Target, Within, Workload

STDLIB: Final = "multiprocessing.Queue"
CONTENDERS: Final = (
    "mpkit",
    STDLIB,
    "SimpleQueue",
    "Manager().Queue()",
    "faster-fifo",
    "dejaq",
    "py-sharedmemory",
    "ZooQueue",
)
#: A bare ring, which allows only one putter and one getter.
BARE: Final = "bare Python"
#: The contenders that let several processes put.
MANY_PUTTERS: Final = tuple(name for name in CONTENDERS if QUEUES[name].putters > 1)


def context() -> BaseContext:
    """The start method: fork, where it exists, since every contender's queue can be passed to a fork."""
    methods = multiprocessing.get_all_start_methods()
    return multiprocessing.get_context("fork" if "fork" in methods else "spawn")


# -- small items ---------------------------------------------------------------------------------------------


def _put_items(gate: Gate, ends: QueueEnds, count: int, getters: int) -> None:
    put = ends.putter()
    for _ in range(getters):  # so that what is created on first use exists before the clock starts
        put((0, "item"))
    gate.start()
    for number in range(count):
        put((number, "item"))
    gate.stop()
    ends.finish()


def _get_items(gate: Gate, ends: QueueEnds, count: int, putters: int) -> int:
    get = ends.getter()
    for _ in range(putters):
        get()
    total = 0
    gate.start()
    for _ in range(count):
        total += get()[0]
    gate.stop()
    return total


def _put_batches(gate: Gate, ends: QueueEnds, count: int, batch: int) -> None:
    put_many = ends.many_putter()
    put_many([(0, "item")])
    gate.start()
    for first in range(0, count, batch):
        put_many([(number, "item") for number in range(first, first + batch)])
    gate.stop()
    ends.finish()


def _get_batches(gate: Gate, ends: QueueEnds, count: int, batch: int) -> int:
    get_many = ends.many_getter(batch)
    left = count + 1 - len(get_many())
    total = 0
    gate.start()
    while left > 0:
        items = get_many()
        left -= len(items)
        for item in items:
            total += item[0]
    gate.stop()
    return total


def small_items(contender: str, scale: Scale, *, putters: int, getters: int, bound: int = 0) -> Sample:
    """Measure items per second through one queue; each getter takes its share."""
    peer = QUEUES[contender]
    each = scale.count(120_000, at_least=4000) // peer.slowness // (putters * getters)
    ends = peer.open(context(), Room(items=bound))
    per_putter, per_getter = each * getters, each * putters
    reports = run_together(
        context(),
        [(_put_items, (ends, per_putter, getters))] * putters
        + [(_get_items, (ends, per_getter, putters))] * getters,
    )
    ends.close()
    expected = putters * per_putter * (per_putter - 1) // 2
    return _rate(reports, each * putters * getters, expected)


def batches(contender: str, scale: Scale, *, size: int = 100) -> Sample:
    """Measure items per second in batches, or item by item if the contender has no batches."""
    peer = QUEUES[contender]
    count = scale.count(400_000, at_least=10_000) // peer.slowness // size * size
    ends = peer.open(context(), Room())
    reports = run_together(
        context(), [(_put_batches, (ends, count, size)), (_get_batches, (ends, count, size))]
    )
    ends.close()
    return _rate(reports, count, count * (count - 1) // 2)


def _rate(reports: list[Report], count: int, expected: int) -> Sample:
    seen = sum(report.value for report in reports if report.value is not None)
    if seen != expected:
        raise AssertionError(f"items were lost or duplicated: their sum is {seen}, not {expected}")
    return rate(reports, count)


# -- round trips ---------------------------------------------------------------------------------------------


def _ask(gate: Gate, there: QueueEnds, back: QueueEnds, count: int) -> list[float]:
    put, get = there.putter(), back.getter()
    trips = []
    for _ in range(100):
        put(0)
        get()
    gate.start()
    clock = time.perf_counter
    for number in range(count):
        begin = clock()
        put(number)
        answer = get()
        trips.append(clock() - begin)
        if answer != number:
            raise AssertionError(f"asked {number}, answered {answer}")
    gate.stop()
    put(None)
    there.finish()
    return trips


def _echo(gate: Gate, there: QueueEnds, back: QueueEnds) -> None:
    get, put = there.getter(), back.putter()
    for _ in range(100):
        put(get())
    gate.start()
    while (item := get()) is not None:
        put(item)
    gate.stop()
    back.finish()


def round_trip(contender: str, scale: Scale) -> Sample:
    """Measure the microseconds from a put to the answer of the other process, through two queues."""
    there, back = (QUEUES[contender].open(context(), Room()) for _ in range(2))
    count = scale.count(5000, at_least=500)
    reports = run_together(context(), [(_ask, (there, back, count)), (_echo, (there, back))])
    for ends in (there, back):
        ends.close()
    trips = sorted(reports[0].value)
    return Sample(
        statistics.median(trips) * 1e6,
        {"mean": statistics.fmean(trips) * 1e6, "99 %": trips[int(len(trips) * 0.99)] * 1e6},
    )


# -- idle and many -------------------------------------------------------------------------------------------


def _wait_for_one(gate: Gate, ends: QueueEnds) -> int:
    get = ends.getter()
    gate.start()
    item: int = get()
    gate.stop()
    return item


def _stay_idle(gate: Gate, ends: QueueEnds, seconds: float) -> float:
    put = ends.putter()
    gate.start()
    family = system.family_of(system.parent_pid(), without=(system.pid(),))
    time.sleep(0.5)  # a getter that begins to wait may spin for a moment: not part of this
    before = system.cpu_seconds(family)
    time.sleep(seconds)
    used = system.cpu_seconds(family) - before
    put(1)
    gate.stop()
    ends.finish()
    return used


def idle_getter(contender: str, scale: Scale) -> Sample:
    """Measure the share of one core, in percent, that a getter of an empty queue uses, with its helpers."""
    ends = QUEUES[contender].open(context(), Room())
    seconds = scale.seconds(20.0, at_least=2.0)
    reports = run_together(context(), [(_wait_for_one, (ends,)), (_stay_idle, (ends, seconds))])
    ends.close()
    return Sample(100 * reports[1].value / seconds)


def create_and_close(contender: str, scale: Scale) -> Sample:
    """Measure the microseconds to create, use once and close a queue; count what 1,000 of them leave."""
    peer, here = QUEUES[contender], context()
    if peer.slowness > 5:
        raise Unsupported  # it starts a process for each queue
    count = scale.count(1000, at_least=100)

    def one() -> None:
        ends = peer.open(here, Room(items=10))
        ends.putter()(1)
        if ends.getter()() != 1:
            raise AssertionError("the item did not arrive")
        ends.finish()
        ends.close()

    one()
    gc.collect()
    before = system.belongings()
    begin = time.perf_counter()
    for _ in range(count):
        one()
    elapsed = time.perf_counter() - begin
    gc.collect()
    left = system.belongings() - before
    return Sample(elapsed / count * 1e6, {"left behind": float(left)})


def idle_memory(contender: str, scale: Scale) -> Sample:
    """Measure the KiB of an open queue, in private and in shared memory, while 100 are open."""
    _ = scale
    peer, here = QUEUES[contender], context()
    if peer.slowness > 5:
        raise Unsupported
    warm = peer.open(here, Room(items=10))
    before = system.memory_bytes()
    open_ones = [peer.open(here, Room(items=10)) for _ in range(100)]
    used = (system.memory_bytes() - before) / 100 / 1024
    for ends in [warm, *open_ones]:
        ends.close()
    return Sample(used)


# -- the rows ------------------------------------------------------------------------------------------------


def _small(
    name: str, title: str, putters: int, getters: int, targets: tuple[Target, ...], bound: int = 0
) -> Workload:
    def run(contender: str, scale: Scale) -> Sample:
        return small_items(contender, scale, putters=putters, getters=getters, bound=bound)

    contenders = MANY_PUTTERS if putters > 1 else CONTENDERS
    if putters == getters == 1 and not bound:
        contenders = (*CONTENDERS, BARE)
    return Workload(name, "queue", title, "items/s", "higher", run, contenders, STDLIB, targets)


def _row(
    name: str,
    title: str,
    unit: str,
    run: Callable[[str, Scale], Sample],
    contenders: tuple[str, ...],
    targets: tuple[Target, ...],
    **options: Any,
) -> Workload:
    better = "higher" if unit.endswith("/s") else "lower"
    return Workload(name, "queue", title, unit, better, run, contenders, STDLIB, targets, **options)  # type: ignore[arg-type]


_ONE = (AtLeastTimes(3, STDLIB), AtLeastTimes(2.5, BEST))
_MANY = (AtLeastTimes(2.5, STDLIB), AtLeastTimes(2, BEST))

WORKLOADS: Final = (
    _small("small-1-1", "small items, 1 putter to 1 getter", 1, 1, _ONE),
    _small("small-1-1-bounded", "the same, at most 1,000 in the queue", 1, 1, (), bound=1000),
    _small("small-4-4", "small items, 4 to 4", 4, 4, _MANY),
    _small("small-1-4", "small items, 1 to 4", 1, 4, _MANY),
    _small("small-4-1", "small items, 4 to 1", 4, 1, _MANY),
    _row(
        "batches",
        "batches of 100 small items, 1 to 1",
        "items/s",
        batches,
        ("mpkit", STDLIB, "SimpleQueue", "faster-fifo"),
        (AtLeastTimes(10, STDLIB), AtLeastTimes(3, "faster-fifo")),
    ),
    _row(
        "round-trip",
        "round trip between two processes",
        "us",
        round_trip,
        (*CONTENDERS[:3], "Pipe", *CONTENDERS[3:], BARE),
        (AtLeastTimes(10, STDLIB), AtLeastTimes(5, "Pipe")),
    ),
    _row(
        "idle-getter",
        "CPU of a getter that waits",
        "% of a core",
        idle_getter,
        ("mpkit", STDLIB, "Manager().Queue()", "faster-fifo", "dejaq", "ZooQueue"),
        (Within(0.1),),
        rounds=2,
    ),
    _row(
        "many-queues",
        "make a queue, use it once, close it (1,000 in a row)",
        "us",
        create_and_close,
        ("mpkit", STDLIB, "SimpleQueue", "faster-fifo", "dejaq"),
        (Within(0, key="left behind"),),
    ),
    _row(
        "idle-memory",
        "memory of an open queue (100 at once)",
        "KiB",
        idle_memory,
        ("mpkit", STDLIB, "SimpleQueue", "faster-fifo"),
        (Within(128),),
        rounds=2,
    ),
)
