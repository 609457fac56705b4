"""Many calls of one function in a few tasks: how items are cut into chunks, and outcomes taken apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from mpkit.pool._engine.ledger import Chunk, Task
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import BIG_VALUE, PART, VALUE

__all__ = ["automatic_chunks", "chunks_of", "open_chunk", "piece_of"]

#: Into so many chunks for each worker a map would be cut if all were of the same size ...
_CHUNKS_PER_WORKER = 4
#: ... but there are so many sizes, each smaller than the last by the same number.
_CHUNK_SIZES = 3


def chunks_of(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Slices of `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def automatic_chunks(items: Sequence[Any], workers: int, most: int) -> Iterator[Sequence[Any]]:
    """Chunks that keep so many workers busy to the end, though some items take longer than others.

    Three quarters of the items in three chunks for each worker, as large as those of
    `multiprocessing.Pool.map`; of what is left three quarters in as many smaller ones, and so on. The idea of
    factoring (Hummel, Schonberg and Flynn, CACM 35(8), 1992) with few sizes, as a chunk has its price.

    Args:
        items: What to cut; not empty.
        workers: How many there are.
        most: The most items of a chunk.
    """
    size = -(-len(items) // (_CHUNKS_PER_WORKER * workers))
    number = (_CHUNKS_PER_WORKER - 1) * workers
    start = 0
    for _ in range(_CHUNK_SIZES - 1):
        stop = start + number * size
        yield from chunks_of(items[start:stop], min(size, most))
        start, size = stop, -(-size // _CHUNKS_PER_WORKER)
    yield from chunks_of(items[start:], min(size, most))


def open_chunk(kind: int, data: object, length: int) -> list[tuple[Any, BaseException | None]]:
    """The outcomes of the items of a chunk."""
    value, error = payload.open_outcome(kind, data)
    if error is not None:
        if kind in (VALUE, BIG_VALUE):
            # One that cannot be unpickled does not take the others with it, if they can be told apart.
            with contextlib.suppress(Exception):
                salvaged = payload.open_items(kind, data)
                if len(salvaged) == length:
                    return salvaged
        return [(None, error)] * length
    results, errors = value
    outcomes: list[tuple[Any, BaseException | None]] = [(result, None) for result in results]
    for index, packed in errors:
        outcomes[index] = (None, payload.unpack_error(packed))
    return outcomes


def piece_of(task: Task, kind: int, data: object) -> tuple[int, int, int, object]:
    """What an outcome says: the first item, how many, kind and data as `open_chunk` takes them."""
    if not isinstance(task, Chunk):
        return task.offset, 1, kind, data
    if kind == PART:
        first, kind, data, length = cast("tuple[int, int, object, int]", data)
        return task.offset + first, length, kind, data
    return task.offset + task.done, task.stop - task.done, kind, data
