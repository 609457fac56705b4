"""Random SIGKILL and SIGSTOP among processes that share a queue, a counter and a lock.

Whichever process is killed or stopped, at any moment: no other one hangs; no item is duplicated, torn or
reordered; a killed getter loses at most the items of one call; the counter contains every addition that has
returned; and after a kill the others go on within half a second.
"""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm.locks.shared_file import RECOVERIES
from tests.stress.queue_chaos_workers import (
    DONE,
    LARGEST_BATCH,
    LARGEST_HANDFUL,
    SEEN,
    SINCE,
    STOP,
    WRONG,
    Item,
    Notebook,
    adder,
    getter,
    locker,
    putter,
)

pytestmark = pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs SIGKILL")

#: The most seconds until somebody makes progress again after a kill.
LONGEST_STALL = 0.5
#: The object that each role works on.
OBJECT_OF = {"putter": "queue", "getter": "queue", "adder": "counter", "locker": "lock"}
TARGETS: dict[str, Callable[..., None]] = {
    "putter": putter,
    "getter": getter,
    "adder": adder,
    "locker": locker,
}
#: Only a hang reaches this.
PATIENCE = 60.0


@dataclass
class Worker:
    role: str
    process: BaseProcess
    notebook: Notebook
    path: Path
    number: int

    @property
    def done(self) -> int:
        return self.notebook.words[DONE]

    @property
    def begun(self) -> bool:
        return bool(self.done or self.notebook.words[SINCE])


@dataclass
class Arena:
    """The workers and their notebooks; kills and stops workers at random, and measures what this causes."""

    context: BaseContext
    directory: Path
    dice: random.Random
    objects: dict[str, Any]
    living: list[Worker] = field(default_factory=list)
    everybody: list[Worker] = field(default_factory=list)
    kills: Counter[str] = field(default_factory=Counter)
    #: How many items may be lost at most with the getters killed so far.
    may_be_lost: int = 0
    stops: int = 0
    last_kill: int = 0
    #: For each object, the longest time (s) after a kill in which no process made progress with it.
    longest_stall: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECT_OF.values(), 0.0))
    #: For each object, the longest operation (s), even if others overtook it. mpkit does not limit this.
    longest_wait: dict[str, float] = field(default_factory=lambda: dict.fromkeys(OBJECT_OF.values(), 0.0))
    #: Both ignore whatever began earlier than this: a worker was stopped then.
    undisturbed_since: int = field(default_factory=time.monotonic_ns)
    progress: dict[str, tuple[int, int]] = field(
        default_factory=lambda: dict.fromkeys(OBJECT_OF.values(), (0, 0))
    )

    def __post_init__(self) -> None:
        self.judge_path = self.directory / "judge"
        self.judge = Notebook(self.judge_path)

    def start(self, role: str) -> None:
        number = len(self.everybody)
        path = self.directory / f"{role}-{number}"
        process = self.context.Process(  # type: ignore[attr-defined]
            target=TARGETS[role], args=(self.objects[role], number, path, self.judge_path), daemon=True
        )
        worker = Worker(role, process, Notebook(path), path, number)
        process.start()
        self.living.append(worker)
        self.everybody.append(worker)

    def others(self, worker: Worker) -> int:
        """How many other workers with the same role have begun to work."""
        return sum(other.begun for other in self.living if other.role == worker.role and other is not worker)

    def kill(self) -> None:
        worker = self.dice.choice(self.living)
        if not worker.begun or not self.others(worker):
            # Not one that has not begun to work, for it has nothing to interrupt; and not the last of its
            # role, for somebody must be left to go on.
            return
        self.kills[worker.role] += 1
        if worker.role == "getter":
            self.may_be_lost += LARGEST_HANDFUL if worker.number % 2 else 1
        worker.process.kill()
        worker.process.join(PATIENCE)
        self.last_kill = time.monotonic_ns()
        self.living.remove(worker)
        self.start(worker.role)

    def stop_and_continue(self) -> None:
        worker = self.dice.choice(self.living)
        assert worker.process.pid is not None
        self.stops += 1
        os.kill(worker.process.pid, signal.SIGSTOP)
        self.sleep(self.dice.uniform(0.001, 0.4))
        os.kill(worker.process.pid, signal.SIGCONT)
        self.undisturbed_since = time.monotonic_ns()

    def sleep(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(0.002)
            self.look()

    def look(self) -> None:
        """Update the measurements once."""
        now = time.monotonic_ns()
        done = dict.fromkeys(OBJECT_OF.values(), 0)
        lacking = {"queue": {"putter", "getter"}, "counter": {"adder"}, "lock": {"locker"}}
        for worker in self.everybody:
            done[OBJECT_OF[worker.role]] += worker.done
        for worker in self.living:
            since = worker.notebook.words[SINCE]
            if since:
                wait = (now - since) / 1e9
                assert wait < PATIENCE, f"{worker.role} {worker.process.pid} hangs"
                name = OBJECT_OF[worker.role]
                lacking[name].discard(worker.role)
                if since > self.undisturbed_since:
                    self.longest_wait[name] = max(self.longest_wait[name], wait)
        for name, (before, at) in self.progress.items():
            if done[name] != before or lacking[name] or at < self.undisturbed_since:
                self.progress[name] = done[name], now
            else:
                self.longest_stall[name] = max(
                    self.longest_stall[name], (now - max(at, self.last_kill)) / 1e9
                )

    def let_end(self) -> None:
        """Tell the survivors to end, and check that each ends by itself."""
        self.judge.words[STOP] = 1
        for role in ("putter", "adder", "locker", "getter"):
            if role == "getter":
                self.objects["getter"].shutdown()
            for worker in [worker for worker in self.living if worker.role == role]:
                worker.process.join(PATIENCE)
                assert worker.process.exitcode == 0, f"{role} {worker.process.pid} hangs or has failed"

    def report(self) -> str:
        recoveries = {
            OBJECT_OF[role]: self.objects[role]._opened().words[RECOVERIES]
            for role in ("putter", "adder", "locker")
        }
        return (
            f"{sum(self.kills.values())} kills {dict(self.kills)}, {self.stops} stops, "
            f"recoveries {recoveries}, "
            f"operations { ({name: done for name, (done, _) in self.progress.items()}) }, "
            f"longest stall {shown(self.longest_stall)}, longest single wait {shown(self.longest_wait)}"
        )


@pytest.fixture
def arena(tmp_path: Path, stress_seed: int, method: str) -> Iterator[Arena]:
    queue: BoundedQueue[Item] = BoundedQueue(maxsize=30)
    counter, lock = LockedCounter(), Lock()
    objects = {"putter": queue, "getter": queue, "adder": counter, "locker": lock}
    arena = Arena(multiprocessing.get_context(method), tmp_path, random.Random(stress_seed), objects)
    try:
        yield arena
    finally:
        for worker in arena.living:
            worker.process.kill()
            worker.process.join()
        queue.close()
        counter.close()
        lock.close()


METHODS = [method for method in ("fork", "spawn") if method in multiprocessing.get_all_start_methods()]


@pytest.mark.timeout(0)
@pytest.mark.parametrize("method", METHODS)
def test_chaos(
    arena: Arena, method: str, stress_seconds: float, stress_seed: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for role in TARGETS:
        for _ in range(3):
            arena.start(role)
    end = time.monotonic() + stress_seconds
    while time.monotonic() < end:
        # Mostly one blow soon after the other; sometimes a pause, long enough to see how long the last one
        # holds the others up.
        arena.sleep(arena.dice.uniform(0.0, 0.04) if arena.dice.random() < 0.8 else 0.6)
        if arena.dice.random() < 0.9:
            arena.kill()
        else:
            arena.stop_and_continue()
    arena.let_end()
    with capsys.disabled():
        print(f"\n{method}, seed {stress_seed}, {stress_seconds:g} s: {arena.report()}")
    judge_queue(arena)
    judge_counter(arena)
    assert not any(worker.notebook.words[WRONG] for worker in arena.everybody)
    assert max(arena.longest_stall.values()) < LONGEST_STALL


def shown(seconds: dict[str, float]) -> str:
    return ", ".join(f"{name} {value:.3f} s" for name, value in seconds.items())


def judge_queue(arena: Arena) -> None:
    taken: dict[int, list[int]] = defaultdict(list)
    for worker in arena.everybody:
        if worker.role == "getter":
            last: dict[int, int] = {}
            path = worker.path.with_suffix(".seen")
            data = path.read_bytes() if path.exists() else b""
            for who, number in SEEN.iter_unpack(data):
                assert number > last.get(who, -1), f"item {number} of putter {who} came after {last[who]}"
                last[who] = number
                taken[who].append(number)
    lost = 0
    for worker in arena.everybody:
        if worker.role == "putter":
            numbers = taken.pop(worker.number, [])
            assert len(numbers) == len(set(numbers)), f"duplicates of putter {worker.number}"
            # The items of the call during which the putter was killed may or may not be in the queue.
            assert not numbers or max(numbers) < worker.done + LARGEST_BATCH
            lost += len(set(range(worker.done)) - set(numbers))
    assert not taken
    assert lost <= arena.may_be_lost, f"{lost} items lost by {arena.kills['getter']} killed getters"


def judge_counter(arena: Arena) -> None:
    value = arena.objects["adder"].value
    acknowledged = sum(worker.done for worker in arena.everybody if worker.role == "adder")
    assert acknowledged <= value <= acknowledged + arena.kills["adder"]
