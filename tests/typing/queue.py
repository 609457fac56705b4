"""What type checkers see of BoundedQueue. Never run."""

from __future__ import annotations

from collections.abc import Iterator

from typing_extensions import assert_type

from mpkit import BoundedQueue, QueueStatistics


def items(queue: BoundedQueue[str]) -> None:
    assert_type(queue.get(), str)
    assert_type(queue.get(False), str)
    assert_type(queue.get(timeout=1.5), str)
    assert_type(queue.get_nowait(), str)
    assert_type(queue.get_many(10, timeout=2), list[str])
    assert_type(queue.put_many(["a", "b"]), int)
    assert_type(queue.put("a"), None)
    assert_type(queue.qsize(), int)
    assert_type(queue.full(), bool)
    assert_type(queue.join(timeout=1), bool)
    assert_type(queue.statistics(), QueueStatistics)
    assert_type(iter(queue), Iterator[str])


def refused(queue: BoundedQueue[str]) -> None:
    queue.put(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    queue.put_many([1])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def created() -> None:
    typed: BoundedQueue[int] = BoundedQueue(10, max_bytes=1 << 20)
    with BoundedQueue[bytes](maxsize=3) as queue:
        assert_type(queue, BoundedQueue[bytes])
    assert_type(typed.get(), int)


async def asynchronous(queue: BoundedQueue[float]) -> None:
    await queue.aput(1.5)
    assert_type(await queue.aget(), float)
    async for item in queue:
        assert_type(item, float)
