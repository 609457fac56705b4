"""A task as it is sent: its record, and what must live until it has ended."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from mpkit.errors import SerializationError
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.ledger import Chunk, ChunkSink, Sink, Task
from mpkit.pool._engine.options import TaskOptions
from mpkit.pool._engine.seen_shared import pickles_for_tasks, seen_shared, take_seen_shared
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import (
    BY_REFERENCE,
    BY_VALUE,
    CHUNK,
    FUNCTION_INSIDE,
    HEAD_SIZE,
    LONGEST_TASK,
    RANGE,
    TASK_HEAD,
)


@pickles_for_tasks
def packed_task(
    numbers: Iterator[int],
    function: Function,
    blob: bytes,
    flags: int,
    arguments: Any,
    sink: Sink,
    options: TaskOptions,
) -> Task:
    """A task of which nobody knows yet. With the flag `CHUNK` the sink is a `ChunkSink`.

    Args:
        numbers: where its own comes from, once its arguments are pickled.
        function: what it calls.
        blob: the function, pickled.
        flags: how the two come to a worker.
        arguments: with `KEYWORDS` two of them, with `CHUNK` the items.
        sink: who is told the outcome.
        options: of the view that it is submitted by.

    Raises:
        SerializationError: the arguments cannot be pickled.
        SharedMemoryExhausted: there is no room for big ones.
    """
    kept: Any = None
    items = len(arguments)
    given, given_flags = arguments, flags
    if len(blob) > payload.INLINE_BYTES:
        # A big closure travels like a big argument.
        arguments, flags = (blob, arguments), flags & ~BY_REFERENCE | FUNCTION_INSIDE
        blob = b""
    if arguments:
        # Function and arguments together: of a longer record nobody would ever be rid.
        most = LONGEST_TASK - HEAD_SIZE - RANGE.size - len(blob)
        try:
            more, data, kept = payload.dump_arguments(arguments, options.pickler, most)
        except SerializationError as error:
            from mpkit.pool._engine.blame import blame, parts_of_task  # noqa: PLC0415  rarely needed

            parts = parts_of_task(function.name, given, given_flags, sink._next_item())
            raise blame(error, parts, options.pickler) from error.__cause__
        flags |= more
    else:
        data = b""
    if seen_shared:
        kept = (kept, take_seen_shared())
    if options.retries or flags & CHUNK:
        # What is sent may be sent again: queues, locks and counters among the arguments must live until
        # then, though the caller has let go of them and the worker that had them open is dead.
        kept = (kept, arguments)
    number = next(numbers)
    if options.pickler == "cloudpickle":
        flags |= BY_VALUE
    record = TASK_HEAD.pack(number, len(blob), flags) + blob
    if flags & CHUNK:
        record += RANGE.pack(0, items) + data
        chunk_sink = cast("ChunkSink", sink)
        return Chunk(number, chunk_sink, record, function, options.timeout, options.retries, kept, 0, items)
    return Task(number, sink, record + data, function, options.timeout, options.retries, kept)
