"""A pool without its safety nets: the periodic looks that would hide a wake-up which is missing.

Each sleep of the pool's threads and of its workers is limited, but no wake-up is ever lost: so everything
here must end although nobody looks without being woken.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mpkit.errors import TaskTimeout, WorkerCrashed
from mpkit.pool import TaskPool
from mpkit.pool._engine import collector as _collector
from mpkit.pool._engine import lead as _lead
from mpkit.pool._engine import limits as _limits
from mpkit.pool._engine import room as _room
from mpkit.pool._protocol.channel import FRONT
from mpkit.pool._worker import outbox as _outbox
from mpkit.pool._worker import worker as _worker
from tests.contract import pool_tasks as tasks
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(os.name != "posix", reason="fork")

_NEVER = 10 * PATIENCE


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[TaskPool]:
    for module in (_lead, _collector, _room, _worker, _outbox):
        monkeypatch.setattr(module, "_SLICE_SECONDS", _NEVER)
    for name in ("_SAMPLE_WITHOUT_SECONDS", "_LOOK_AROUND_SECONDS"):
        monkeypatch.setattr(_limits, name, _NEVER)
    # The workers inherit this, because they are forked.
    with TaskPool(2, context="fork", max_pending=2000) as pool:
        yield pool
        pool.close()
        assert pool.join(PATIENCE)


def wait_and_square(number: int) -> int:
    """Long enough for the worker of another task, and the threads of the pool, to fall asleep."""
    time.sleep(0.002 * (number % 3))
    return number * number


def be_called_back(pool: TaskPool) -> None:
    called = threading.Semaphore(0)
    for count in (1, 3, 1000):
        for number in range(count):
            pool.apply_async(tasks.square, (number,), callback=lambda _: called.release())
        for _ in range(count):
            assert called.acquire(timeout=PATIENCE)


def wait_for_all(pool: TaskPool) -> None:
    for count in (1, 3, 300):
        handles = [pool.submit(wait_and_square, number) for number in range(count)]
        assert not concurrent.futures.wait(handles, PATIENCE).not_done


def wait_in_threads(pool: TaskPool) -> None:
    found: list[int] = []

    def use() -> None:
        found.extend(pool.submit(wait_and_square, number).result(PATIENCE) for number in range(30))

    threads = [threading.Thread(target=use, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert sorted(found) == sorted(number * number for number in range(30) for _ in threads)


def wait_in_coroutines(pool: TaskPool) -> None:
    async def use() -> list[int]:
        handles = [pool.submit(wait_and_square, number) for number in range(30)]
        return await asyncio.wait_for(asyncio.gather(*map(asyncio.wrap_future, handles)), PATIENCE)

    assert asyncio.run(use()) == [number * number for number in range(30)]


def map_lazily(pool: TaskPool) -> None:
    expected = [number * number for number in range(200)]
    for chunksize in (1, 7):
        assert list(pool.imap(wait_and_square, iter(range(200)), chunksize)) == expected
        assert sorted(pool.imap_unordered(wait_and_square, range(200), chunksize, buffersize=20)) == expected


def fill_the_outboxes(pool: TaskPool) -> None:
    """While nobody waits for the outcomes, which are many times as big as what an outbox holds."""
    handles = [pool.submit(bytes, 10_000) for _ in range(300)]
    pool.close()
    assert pool.join(PATIENCE)
    assert all(handle.done() for handle in handles)


def lose_workers(pool: TaskPool) -> None:
    crashing = [pool.submit(tasks.kill_myself) for _ in range(3)]
    handles = [pool.submit(tasks.square, number) for number in range(100)]
    assert [handle.result(PATIENCE) for handle in handles] == [number * number for number in range(100)]
    assert all(isinstance(handle.exception(PATIENCE), WorkerCrashed) for handle in crashing)


@pytest.mark.parametrize(
    "use",
    [
        be_called_back,
        wait_for_all,
        wait_in_threads,
        wait_in_coroutines,
        map_lazily,
        fill_the_outboxes,
        lose_workers,
    ],
)
def test_no_wake_up_is_lost(pool: TaskPool, use: Callable[[TaskPool], None]) -> None:
    use(pool)


@pytest.mark.parametrize("others", [False, True], ids=["idle", "busy"])
def test_a_time_limit_is_noticed_when_it_is_over(pool: TaskPool, tmp_path: Path, others: bool) -> None:
    gate = tmp_path / "gate"
    if others:
        running = pool.submit(tasks.wait_for_file, str(gate))
        wait_until(running.running, "it runs")
    supervisor = pool._engine.supervisor
    wait_until(lambda: supervisor.looks_at > time.monotonic() + PATIENCE, "it looks at nothing for long")
    with pytest.raises(TaskTimeout):
        pool.with_options(timeout=0.01).submit(time.sleep, _NEVER).result(PATIENCE)
    gate.touch()


def test_running_tasks_that_are_cancelled_are_stopped_at_once(pool: TaskPool, tmp_path: Path) -> None:
    """Otherwise their workers would do nothing else until somebody looks."""
    begun = [tmp_path / "first", tmp_path / "second"]
    handles = [pool.submit(tasks.touch_and_wait, str(path), _NEVER) for path in begun]
    wait_until(lambda: all(path.exists() for path in begun), "both run")
    for handle in handles:
        assert handle.cancel()
    assert pool.submit(tasks.square, 3).result(PATIENCE) == 9


def test_a_thread_that_waits_for_a_task_is_woken_when_another_one_cancels_it(
    pool: TaskPool, tmp_path: Path
) -> None:
    gate = tmp_path / "gate"
    running = [pool.submit(tasks.wait_for_file, str(gate)) for _ in range(2)]
    wait_until(lambda: all(handle.running() for handle in running), "both run")
    queued = pool.submit(tasks.square, 3)
    waiting = threading.Thread(target=queued.wait, daemon=True)
    waiting.start()
    wait_until(lambda: pool._engine.board.words[FRONT], "it sleeps")
    assert queued.cancel()
    waiting.join(PATIENCE)
    assert not waiting.is_alive()
    gate.touch()
