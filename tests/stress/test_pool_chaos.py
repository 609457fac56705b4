"""Pools under random deaths, time limits, cancellations and restarts: every handle ends, every result is
right, and nothing is left behind.

python -m pytest tests/stress/test_pool_chaos.py --stress-seconds 600 --stress-seed 1
"""

from __future__ import annotations

import collections
import os
import random
import signal
import threading
import time

import pytest

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.locks import remains
from mpkit.errors import SerializationError, TaskCancelled, TaskTimeout, WorkerCrashed
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine.start_ups import MOST_KILLED
from tests.contract import pool_tasks as tasks

#: What `WorkerSnapshot.state` is until a worker is ready.
_STARTING = ("starting", "initializing")
#: How many workers in a row may be killed before they are ready. A pool gives up after `MOST_KILLED`, and
#: where a start-up takes long, chance alone would bring that about.
_MOST_KILLED_STARTING = MOST_KILLED // 2


def chaos(method: str, seconds: float, seed: int) -> collections.Counter[str]:
    """Use one pool after the other, each while its workers are killed at random."""
    rng = random.Random(seed)
    figures: collections.Counter[str] = collections.Counter()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        figures["pools"] += 1
        one_pool(method, rng, figures, min(end, time.monotonic() + rng.uniform(1.0, 8.0)))
    return figures


def one_pool(method: str, rng: random.Random, figures: collections.Counter[str], end: float) -> None:
    pool = TaskPool(
        processes=rng.randint(1, 4),
        context=method,
        grace_period=0.1,
        maxtasksperchild=rng.choice([None, None, 50]),
    )
    over = threading.Event()
    victims: set[ProcessIdentity | None] = set()

    def murder(seed: int) -> None:
        dice = random.Random(seed)
        seen_ready: set[int] = set()
        killed_starting = 0
        while not over.wait(dice.expovariate(8.0)):
            workers = pool.workers()
            ready = {worker.pid for worker in workers if worker.state not in _STARTING}
            if ready - seen_ready:
                killed_starting = 0
                seen_ready |= ready
            if killed_starting == _MOST_KILLED_STARTING:
                workers = [worker for worker in workers if worker.pid in ready]
            if workers:
                victim = dice.choice(workers)
                killed_starting += victim.pid not in ready
                victims.add(identity.of(victim.pid))
                figures["kills"] += 1
                try:
                    os.kill(victim.pid, dice.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGSEGV]))
                except ProcessLookupError:
                    figures["kills"] -= 1

    murderer = threading.Thread(target=murder, args=(rng.random(),))
    murderer.start()
    try:
        while time.monotonic() < end:
            one_round(pool, rng, figures)
    finally:
        over.set()
        murderer.join()
        if rng.random() < 0.5:
            pool.terminate()
        else:
            pool.close()
        assert pool.join(60), "the pool did not end"
    left = [name for victim in victims if victim is not None for name in remains._left_by(victim)]
    assert not left, "names that killed workers made are left"


def one_round(pool: TaskPool, rng: random.Random, figures: collections.Counter[str]) -> None:
    expected: list[tuple[TaskHandle[object], object]] = []
    for _ in range(rng.randint(1, 300)):
        kind = rng.random()
        view = pool.with_options(retries=rng.choice([0, 0, 1, 3]), timeout=rng.choice([None, None, 5.0]))
        number = rng.randint(0, 1000)
        if kind < 0.05:
            expected.append((view.submit(tasks.make_a_queue), None))
        elif kind < 0.80:
            expected.append((view.submit(tasks.square, number), number * number))
        elif kind < 0.90:
            data = bytes(rng.randint(0, 200_000))
            expected.append((view.submit(tasks.echo, data), data))
        elif kind < 0.93:
            expected.append((view.submit(tasks.exit_now, 3), WorkerCrashed))
        elif kind < 0.95:
            expected.append((pool.with_options(timeout=0.05).submit(tasks.hang), TaskTimeout))
        elif kind < 0.97:
            expected.append((view.submit(tasks.return_unpicklable), SerializationError))
        else:
            expected.append((view.submit(tasks.fail, number), ValueError))
        if rng.random() < 0.05:
            victim = rng.choice(expected)[0]
            if victim.cancel():
                figures["cancelled"] += 1
    if rng.random() < 0.3:
        try:
            assert sorted(pool.imap_unordered(tasks.square, range(200), chunksize=rng.choice([1, 7]))) == [
                n * n for n in range(200)
            ]
        except WorkerCrashed:
            figures["crashed maps"] += 1
    rng.shuffle(expected)
    for handle, value in expected:
        try:
            got: object = handle.result(60)
        except TaskCancelled:
            assert handle.cancelled()
            figures["cancelled results"] += 1
        except WorkerCrashed:
            figures["crashed"] += 1
        except (TaskTimeout, SerializationError, ValueError) as error:
            if not isinstance(value, type) or not isinstance(error, value):
                raise
            figures["failed"] += 1
        else:
            assert got == value
            figures["right"] += 1


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.timeout(0)
def test_chaos(method: str, stress_seconds: float, stress_seed: int) -> None:
    print(f"seed {stress_seed}")
    figures = chaos(method, stress_seconds / 2, stress_seed)
    print(method, dict(figures))
    assert figures["right"]
