"""Many calls of one function in a few tasks: cuts items into chunks, and takes their outcomes apart."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, cast

from mpkit.pool._engine.ledger import Chunk, Task
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import BIG_VALUE, PART, VALUE

#: The size of the first chunks of a map is such that this many per worker would hold all of its items (as
#: with `multiprocessing.Pool.map`). It is also the factor by which each further size is smaller.
_CHUNKS_PER_WORKER = 4
#: How many different sizes there are.
_CHUNK_SIZES = 3


def chunks_of(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Slices of `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def automatic_chunks(items: Sequence[Any], workers: int, most: int) -> Iterator[Sequence[Any]]:
    """Chunks that keep all workers busy to the end, even if some items take longer than others.

    Three quarters of the items go into three chunks for each worker, as large as those of
    `multiprocessing.Pool.map`; three quarters of the remaining items into as many smaller chunks; the rest
    into the smallest ones. This is factoring (Hummel, Schonberg and Flynn, CACM 35(8), 1992), with few sizes,
    because each chunk has a fixed cost.

    Args:
        items: What to cut; not empty.
        workers: The number of workers.
        most: The largest number of items in a chunk.
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
    """The result and the error of each item of a chunk, from the outcome of the chunk.

    Args:
        kind: That of the outcome.
        data: That of the outcome.
        length: The number of items.
    """
    value, error = payload.open_outcome(kind, data)
    if error is not None:
        if kind in (VALUE, BIG_VALUE):
            # One result cannot be unpickled. The others are still good, if the pickle can be taken apart.
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
    """Which items an outcome is about: the first one, their number, then kind and data for `open_chunk`.

    The items of a map are counted from 0, in the order of its input.
    """
    if not isinstance(task, Chunk):
        return task.offset, 1, kind, data
    if kind == PART:
        first, kind, data, length = cast("tuple[int, int, object, int]", data)
        return task.offset + first, length, kind, data
    return task.offset + task.done, task.stop - task.done, kind, data
