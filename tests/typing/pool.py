"""What type checkers see of TaskPool. Never run."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import Executor, Future, as_completed

from typing_extensions import assert_type

from mpkit import PoolStatistics, PoolView, Shared, TaskHandle, TaskPool, WorkerSnapshot
from mpkit.pool import PoolVerbs


def repeat(text: str, times: int = 1, *, sep: str = "") -> list[str]:
    return [text + sep] * times


def one(n: int) -> str:
    return str(n)


def submitting(pool: TaskPool) -> None:
    handle = pool.submit(repeat, "a", 2, sep="-")
    assert_type(handle, TaskHandle[list[str]])
    assert_type(handle.result(), list[str])
    assert_type(handle.get(timeout=1), list[str])
    assert_type(handle.ready(), bool)
    assert_type(handle.successful(), bool)
    assert_type(handle.task_id, int)
    assert_type(handle.worker_pid, "int | None")
    future: Future[list[str]] = handle
    print(future)


def refused(pool: TaskPool) -> None:
    pool.submit(repeat, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    pool.submit(one)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    pool.map(one, ["a"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def maps(pool: TaskPool) -> None:
    assert_type(pool.apply(one, (1,)), str)
    assert_type(pool.apply_async(one, (1,)), TaskHandle[str])
    assert_type(pool.map(one, range(3)), list[str])
    assert_type(pool.starmap(repeat, [("a", 1)]), list[list[str]])
    lazily: Iterator[str] = pool.imap(one, range(3), buffersize=2)
    print(lazily)


def options(pool: TaskPool) -> None:
    patient = pool.with_options(timeout=2.5, retries=1, pickler="cloudpickle")
    assert_type(patient.submit(one, 1), TaskHandle[str])
    assert_type(patient.map(one, [1]), list[str])


def with_or_without_options(view: PoolView) -> None:
    assert_type(view.submit(one, 1), TaskHandle[str])


def any_pool(pool: PoolVerbs) -> None:
    assert_type(pool.submit(one, 1), Future[str])


def pools(pool: TaskPool) -> None:
    for each in (pool, pool.with_options(timeout=1)):
        with_or_without_options(each)
        any_pool(each)


def as_they_end(pool: TaskPool) -> None:
    numbers: dict[Future[str], int] = {pool.submit(one, n): n for n in range(3)}
    for future in as_completed(numbers):
        assert_type(numbers[future], int)


def around(pool: TaskPool) -> None:
    executor: Executor = pool.executor
    print(executor)
    assert_type(pool.join(timeout=1), bool)
    assert_type(pool.workers(), list[WorkerSnapshot])
    assert_type(pool.statistics(), PoolStatistics)
    assert_type(pool.stacks(), dict[int, str])
    shared = pool.share([1, 2])
    assert_type(shared, Shared[list[int]])
    assert_type(shared.value, list[int])


async def awaiting(pool: TaskPool) -> None:
    assert_type(await pool.submit(one, 1), str)
    assert_type(await asyncio.wrap_future(pool.submit(one, 1)), str)
