"""Pools: small tasks through each method, uneven tasks, large data, failures, start and end."""

from __future__ import annotations

import gc
import os
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from benchmarks import system, tasks
from benchmarks.peers import POOLS
from benchmarks.peers.base import OpenPool, Unsupported
from benchmarks.workload import BEST, OWN, AtLeastTimes, Better, Sample, Scale, Target, Within, Workload

STDLIB: Final = "multiprocessing.Pool"
EXECUTOR: Final = "ProcessPoolExecutor"
CONTENDERS: Final = (OWN, STDLIB, EXECUTOR, "loky", "joblib", "pebble", "mpire", "billiard", "ZooPool")

#: The number of workers in every workload. The targets are meant for it.
WORKERS: Final = 2


@contextmanager
def pool_of(contender: str, scale: Scale) -> Iterator[OpenPool]:
    """Open a pool whose workers have all started and imported what they need."""
    pool = POOLS[contender].open(WORKERS, scale.start_method)
    pool.submit_all(tasks.use_cpu, [0.02] * 2 * WORKERS)
    pool.apply(tasks.same, 0)
    yield pool
    pool.close()


def _timed(work: Callable[[], Sequence[Any]], count: int) -> tuple[Sequence[Any], Sample]:
    """Run `work`, which does `count` tasks; return its result and the tasks per second.

    The details contain the CPU time per task, of all processes and of the calling one. On a busy machine
    these say more than the rate.
    """
    family = system.family_of(system.pid())
    cpu, own_cpu, begin = -system.cpu_seconds(family), -time.process_time(), time.perf_counter()
    results = work()
    elapsed = time.perf_counter() - begin
    own_cpu += time.process_time()
    cpu += system.cpu_seconds(family)
    detail = {"CPU us each": cpu / count * 1e6, "caller's CPU us each": own_cpu / count * 1e6}
    return results, Sample(count / elapsed, detail)


def _check(results: Sequence[Any], count: int) -> None:
    if sum(results) != count * (count - 1) // 2:
        raise AssertionError(f"{len(results)} results of {count} tasks, and their sum is not right")


# -- small tasks ---------------------------------------------------------------------------------------------


def submit_then_collect(contender: str, scale: Scale) -> Sample:
    """Measure tasks per second: submit all, then collect all."""
    count = scale.count(20_000, at_least=1000) // (1 if scale.size >= 1 else POOLS[contender].slowness)
    with pool_of(contender, scale) as pool:
        results, sample = _timed(lambda: pool.submit_all(tasks.same, range(count)), count)
    _check(results, count)
    return sample


def one_at_a_time(contender: str, scale: Scale) -> Sample:
    """Measure calls per second, waiting for each before the next."""
    count = scale.count(12_000, at_least=1000) // POOLS[contender].slowness // (1 if contender == OWN else 4)
    with pool_of(contender, scale) as pool:
        apply = pool.apply
        for _ in range(20):
            apply(tasks.same, 0)
        results, sample = _timed(lambda: [apply(tasks.same, number) for number in range(count)], count)
    _check(results, count)
    return sample


def lazily(contender: str, scale: Scale) -> Sample:
    """Measure items per second, with one task for each item and results in any order."""
    count = scale.count(40_000, at_least=2000) // POOLS[contender].slowness
    with pool_of(contender, scale) as pool:
        results, sample = _timed(lambda: list(pool.imap_unordered(tasks.same, range(count))), count)
    _check(results, count)
    return sample


def in_chunks(contender: str, scale: Scale) -> Sample:
    """Measure items per second, in chunks of the size that the contender chooses."""
    count = scale.count(1_000_000, at_least=20_000) // POOLS[contender].slowness ** 2
    with pool_of(contender, scale) as pool:
        results, sample = _timed(lambda: pool.map(tasks.same, range(count)), count)
    _check(results, count)
    return sample


# -- tasks that work -----------------------------------------------------------------------------------------


def share_at_work(contender: str, scale: Scale, *, task_seconds: float) -> Sample:
    """Measure the share of both cores' time spent in tasks, with the contender's better method."""
    total = scale.seconds(1.6, at_least=0.3) / POOLS[contender].slowness
    count = max(int(total / task_seconds), 50)
    ways: dict[str, float] = {}
    with pool_of(contender, scale) as pool:
        for name, verb in (("submit", pool.submit_all), ("imap_unordered", pool.imap_unordered)):
            begin = time.perf_counter()
            try:
                done = len(list(verb(tasks.use_cpu, [task_seconds] * count)))
            except Unsupported:
                continue
            elapsed = time.perf_counter() - begin
            if done != count:
                raise AssertionError(f"{done} results of {count} tasks")
            ways[name] = count * task_seconds / (elapsed * WORKERS)
    return Sample(max(ways.values()), ways)


def share_by_map(contender: str, scale: Scale) -> Sample:
    """Measure the share of both cores' time spent in one map whose items take longer and longer."""
    count = scale.count(5_000, at_least=500) // POOLS[contender].slowness
    longest = 600e-6
    work = [longest * number / count for number in range(count)]
    with pool_of(contender, scale) as pool:
        begin = time.perf_counter()
        # Another function than the one `pool_of` called, or mpire would pass items in the way it did then.
        done = len(pool.map(tasks.use_cpu_timed, work))
        elapsed = time.perf_counter() - begin
    if done != count:
        raise AssertionError(f"{done} results of {count} items")
    return Sample(sum(work) / (elapsed * WORKERS))


def mixed(contender: str, scale: Scale) -> Sample:
    """Measure the total time as a multiple of the ideal, with one long task among a hundred short ones.

    The details contain the longest time that a worker was idle.
    """
    hundreds = 10 if scale.size >= 0.5 else 6
    long, short = 0.1, 100e-6
    work = [long if number % 100 == 50 else short for number in range(100 * hundreds)]
    with pool_of(contender, scale) as pool:
        begin = time.perf_counter()
        done = pool.submit_all(tasks.use_cpu_timed, work)
        elapsed = time.perf_counter() - begin
    ideal = sum(work) / WORKERS
    return Sample(elapsed / ideal, {"longest idle spell": 1000 * _longest_idle(done)})


def _longest_idle(done: Sequence[tuple[int, float, float]]) -> float:
    """The longest time for which a worker had nothing to do although there were tasks that had not begun."""
    last_begin = max(begin for _, begin, _ in done)
    longest = 0.0
    for pid in {pid for pid, _, _ in done}:
        spans = sorted((begin, end) for member, begin, end in done if member == pid)
        ends = [end for _, end in spans]
        begins = [min(begin, last_begin) for begin, _ in spans[1:]] + [last_begin]
        longest = max(longest, *(begin - end for begin, end in zip(begins, ends, strict=True)))
    return longest


# -- large data ----------------------------------------------------------------------------------------------


def same_array(contender: str, scale: Scale) -> Sample:
    """Measure tasks per second, each of which reads a part of one large array; a few run at a time."""
    import numpy as np

    name, _, way = contender.partition(" ")
    size = 100_000_000 if scale.size >= 1 else 20_000_000
    array = np.ones(size // 8)
    count = 100 if way or name in ("joblib", OWN) or scale.size < 1 else 24
    with pool_of(name, scale) as pool:
        begin = time.perf_counter()
        if way == "share":
            with pool.pool.share(array) as shared:  # type: ignore[attr-defined]
                totals = _a_few_at_a_time(
                    pool, tasks.sum_of_part, [(shared, number % 100) for number in range(count)]
                )
        elif name == "joblib":
            totals = pool.map_shared(tasks.sum_of_part, array, range(count))  # type: ignore[attr-defined]
        else:
            totals = _a_few_at_a_time(
                pool, tasks.sum_of_part, [(array, number % 100) for number in range(count)]
            )
        elapsed = time.perf_counter() - begin
    if totals != [size // 800] * count:
        raise AssertionError("a part of the array did not arrive as it was sent")
    return Sample(count / elapsed)


def _a_few_at_a_time(
    pool: OpenPool, function: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]
) -> list[Any]:
    under_way: deque[Any] = deque()
    results = []
    for each in arguments:
        under_way.append(pool.start(function, *each))
        if len(under_way) == 2 * WORKERS:
            results.append(pool.finish(under_way.popleft()))
    results += [pool.finish(handle) for handle in under_way]
    return results


def arrays_back(contender: str, scale: Scale) -> Sample:
    """Measure GB/s of results, arrays of 10 MB each, received and read."""
    size, count = 10_000_000, scale.count(60, at_least=12)
    with pool_of(contender, scale) as pool:
        pool.submit_all(tasks.array_of, [size] * 2 * WORKERS)
        begin = time.perf_counter()
        results = pool.map(tasks.array_of, [size] * count)
        totals = [float(array.sum()) for array in results]
        elapsed = time.perf_counter() - begin
        del results
    if totals != [size // 8] * count:
        raise AssertionError("an array came back damaged")
    return Sample(size * count / elapsed / 1e9)


# -- failures ------------------------------------------------------------------------------------------------


def _begun(path: Path) -> tuple[int, float]:
    """Wait for the note of a task in `path`; return the pid that runs it, and since when."""
    while not path.exists():
        time.sleep(0.001)
    pid, begin = path.read_text(encoding="ascii").split()
    return int(pid), float(begin)


def crash_latency(contender: str, scale: Scale) -> Sample:
    """Measure the ms from the SIGKILL of a worker until the caller that waits for its task gets the error."""
    import signal

    delays = []
    pool: OpenPool | None = None
    with tempfile.TemporaryDirectory() as directory:
        for number in range(scale.count(10, at_least=3)):
            if pool is None or contender != OWN:
                pool = POOLS[contender].open(WORKERS, scale.start_method)  # most pools do not survive it
                pool.apply(tasks.same, 0)
            path = Path(directory) / str(number)
            handle = pool.start(tasks.note_and_sleep, str(path))
            pid, _ = _begun(path)
            killer = _Later(0.05, lambda pid=pid: os.kill(pid, signal.SIGKILL))  # type: ignore[misc]
            delays.append(_until_error(pool, handle) - killer.done())
            if contender != OWN:
                pool.close()
        if contender == OWN and pool is not None:
            pool.close()
    return Sample(1000 * statistics.median(delays), {"longest": 1000 * max(delays)})


class _Later:
    """Runs `action` after `delay` seconds, in a thread, and records when."""

    def __init__(self, delay: float, action: Callable[[], object]) -> None:
        import threading

        self._delay, self._action, self._when = delay, action, 0.0
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        time.sleep(self._delay)
        self._when = time.perf_counter()
        self._action()

    def done(self) -> float:
        self._thread.join()
        return self._when


def _until_error(pool: OpenPool, handle: Any) -> float:
    try:
        result = pool.finish(handle)
    except BaseException:
        return time.perf_counter()
    raise AssertionError(f"the task should have failed, and returned {result!r}")


def overshoot(
    contender: str, scale: Scale, *, function: Callable[[str], None], grace_ms: float = 0.0
) -> Sample:
    """Measure the ms from the end of a time limit to the error in the caller, less the grace period."""
    limit = 0.3
    delays = []
    with pool_of(contender, scale) as pool, tempfile.TemporaryDirectory() as directory:
        for number in range(scale.count(5, at_least=2)):
            path = Path(directory) / str(number)
            handle = pool.start_limited(function, str(path), limit)
            _, begin = _begun(path)
            delays.append(_until_error(pool, handle) - begin - limit)
    grace = grace_ms if contender == OWN else 0.0
    return Sample(1000 * statistics.median(delays) - grace, {"longest": 1000 * max(delays) - grace})


# -- beginning, end, rest ------------------------------------------------------------------------------------


def _times_of_life(contender: str, scale: Scale, start_method: str) -> tuple[float, float]:
    opening, closing = [], []
    for turn in range(scale.count(6, at_least=4)):
        begin = time.perf_counter()
        pool = POOLS[contender].open(WORKERS, start_method)
        pool.apply(tasks.same, 0)
        first = time.perf_counter()
        pool.close()
        end = time.perf_counter()
        if turn:  # not the first, which also starts what all others use (a fork server, a tracker)
            opening.append(first - begin)
            closing.append(end - first)
    return statistics.median(opening), statistics.median(closing)


def first_result(contender: str, scale: Scale, *, start_method: str) -> Sample:
    """Measure the ms from creating a pool to its first result."""
    return Sample(1000 * _times_of_life(contender, scale, start_method)[0])


def closing(contender: str, scale: Scale, *, start_method: str) -> Sample:
    """Measure the ms from closing a pool to the end of all its workers."""
    return Sample(1000 * _times_of_life(contender, scale, start_method)[1])


def left_behind(contender: str, scale: Scale) -> Sample:
    """Count the files, threads, processes and shared memory that ten pools leave after they were closed."""
    counts = []
    for _ in range(11):
        pool = POOLS[contender].open(WORKERS, scale.start_method)
        pool.apply(tasks.same, 0)
        pool.close()
        del pool
        gc.collect()
        counts.append(system.belongings())
    return Sample(float(max(counts[-1] - counts[0], 0)))


def idle_cpu(contender: str, scale: Scale) -> Sample:
    """Measure the share of one core, in percent, that a pool without work uses, including its workers."""
    seconds = scale.seconds(20.0, at_least=2.0)
    with pool_of(contender, scale):
        time.sleep(1.0)
        family = system.family_of(system.pid())
        before = system.cpu_seconds(family)
        time.sleep(seconds)
        used = system.cpu_seconds(family) - before
    return Sample(100 * used / seconds)


def flatness(contender: str, scale: Scale) -> Sample:
    """Measure the growth in MB, including workers, from a tenth of the tasks to all of them."""
    total = scale.count(1_000_000, at_least=100_000) // POOLS[contender].slowness
    wave = 5000
    with pool_of(contender, scale) as pool:

        def wave_after_wave(count: int) -> None:
            for _ in range(0, count, wave):
                pool.submit_all(tasks.same, range(wave))

        wave_after_wave(total // 10)
        gc.collect()
        before = system.private_bytes(system.family_of(system.pid()))
        wave_after_wave(total - total // 10)
        gc.collect()
        after = system.private_bytes(system.family_of(system.pid()))
    return Sample((after - before) / 1e6)


# -- the rows ------------------------------------------------------------------------------------------------


def _row(
    name: str,
    title: str,
    unit: str,
    run: Callable[[str, Scale], Sample],
    targets: tuple[Target, ...],
    contenders: tuple[str, ...] = CONTENDERS,
    *,
    baseline: str = STDLIB,
    rounds: int = 99,
    timeout: float = 60.0,
    better: Better | None = None,
) -> Workload:
    better = better or ("higher" if unit.endswith("/s") else "lower")
    return Workload(name, "pool", title, unit, better, run, contenders, baseline, targets, rounds, timeout)


def _at_work(name: str, text: str, task_seconds: float, share: float) -> Workload:
    def run(contender: str, scale: Scale) -> Sample:
        return share_at_work(contender, scale, task_seconds=task_seconds)

    targets = (Within(share, at_least=True), AtLeastTimes(1, BEST))
    return _row(name, f"share of both cores at work, tasks of {text}", "of 1", run, targets, better="higher")


def _life(name: str, title: str, run: Callable[..., Sample], start_method: str) -> Workload:
    def run_with(contender: str, scale: Scale) -> Sample:
        return run(contender, scale, start_method=start_method)

    contenders = tuple(peer for peer in CONTENDERS if peer not in ("loky", "joblib"))
    return _row(
        f"{name}-{start_method}",
        f"{title}, {start_method}",
        "ms",
        run_with,
        (AtLeastTimes(1, STDLIB),),
        contenders,
        rounds=3,
    )


def _polite(contender: str, scale: Scale) -> Sample:
    return overshoot(contender, scale, function=tasks.note_and_sleep)


def _stubborn(contender: str, scale: Scale) -> Sample:
    # The default grace period of a `TaskPool`.
    return overshoot(contender, scale, function=tasks.note_and_hold, grace_ms=1000.0)


_RESULT = "create a pool, to its first result"
_CLOSE = "close a pool and wait for its workers"

WORKLOADS: Final = (
    _row(
        "submit",
        "submit 20,000 no-ops, then collect",
        "tasks/s",
        submit_then_collect,
        (AtLeastTimes(3, STDLIB), AtLeastTimes(10, EXECUTOR), AtLeastTimes(3, BEST)),
        (*CONTENDERS, "bare Python"),
    ),
    _row(
        "apply",
        "one call at a time",
        "calls/s",
        one_at_a_time,
        (AtLeastTimes(15, STDLIB), AtLeastTimes(8, BEST)),
    ),
    _row(
        "imap",
        "imap_unordered, chunksize 1",
        "items/s",
        lazily,
        (AtLeastTimes(2, STDLIB),),
        tuple(peer for peer in CONTENDERS if peer != "ZooPool"),
    ),
    _row("map", "map of a no-op with automatic chunks", "items/s", in_chunks, (AtLeastTimes(1, STDLIB),)),
    _at_work("work-30us", "30 us", 30e-6, 0.6),
    _at_work("work-100us", "100 us", 100e-6, 0.85),
    _at_work("work-1ms", "1 ms", 1e-3, 0.97),
    _row(
        "map-uneven",
        "share of both cores at work, a map with automatic chunks whose items take ever longer",
        "of 1",
        share_by_map,
        (AtLeastTimes(1, BEST),),
        better="higher",
    ),
    _row(
        "mixed",
        "one task of 100 ms among a hundred of 100 us: time in parts of the ideal",
        "x ideal",
        mixed,
        (Within(1.15), Within(10, key="longest idle spell", unit="ms")),
    ),
    _row(
        "same-array",
        "tasks that read a part of one array of 100 MB",
        "tasks/s",
        same_array,
        (AtLeastTimes(20, EXECUTOR, of="mpkit share"), AtLeastTimes(3, EXECUTOR)),
        (OWN, "mpkit share", STDLIB, EXECUTOR, "joblib", "loky", "pebble"),
        baseline=EXECUTOR,
        rounds=3,
        timeout=180.0,
    ),
    _row(
        "arrays-back",
        "tasks that return arrays of 10 MB",
        "GB/s",
        arrays_back,
        (AtLeastTimes(5, STDLIB),),
        timeout=120.0,
    ),
    _row(
        "crash",
        "from SIGKILL of a worker to the error in the caller",
        "ms",
        crash_latency,
        (Within(20),),
        (OWN, EXECUTOR, "loky", "pebble"),
        baseline=EXECUTOR,
        rounds=3,
    ),
    _row(
        "overshoot",
        "a time limit: how late the caller knows",
        "ms",
        _polite,
        (Within(50),),
        (OWN, "pebble", "mpire"),
        baseline="",
        rounds=3,
    ),
    _row(
        "overshoot-c",
        "the same, with C code that holds the interpreter lock, less the grace period",
        "ms",
        _stubborn,
        (Within(50),),
        (OWN, "pebble"),
        baseline="",
        rounds=2,
    ),
    _life("first-result", _RESULT, first_result, "forkserver"),
    _life("first-result", _RESULT, first_result, "fork"),
    _life("close", _CLOSE, closing, "forkserver"),
    _life("close", _CLOSE, closing, "fork"),
    _row(
        "left-behind",
        "left by 10 pools",
        "things",
        left_behind,
        (Within(0),),
        (OWN, STDLIB, EXECUTOR, "pebble"),
        rounds=1,
    ),
    _row(
        "idle-pool",
        "CPU of a pool without work",
        "% of a core",
        idle_cpu,
        (Within(0.1),),
        (OWN, STDLIB, EXECUTOR, "pebble"),
        rounds=2,
    ),
    _row(
        "memory",
        "growth over 1,000,000 tasks",
        "MB",
        flatness,
        (Within(1),),
        (OWN,),
        baseline="",
        rounds=1,
        timeout=300.0,
    ),
)
