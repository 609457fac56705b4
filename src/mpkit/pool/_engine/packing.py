"""Creates tasks: the record of a task, and the objects that must live until it has ended."""

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

#: How long function and arguments may be together: a longer record might never fit into an inbox.
_MOST_BYTES = LONGEST_TASK - HEAD_SIZE - RANGE.size


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
    """Create a task, which is neither sent nor queued yet.

    Args:
        numbers: the numbers of new tasks; one is taken after pickling.
        function: what is known about the function.
        blob: the function, pickled.
        flags: how function and arguments are pickled (see `mpkit.pool._protocol.channel`).
        arguments: a tuple; with `KEYWORDS` a tuple and a dictionary; with `CHUNK` the items.
        sink: is told the outcome; with `CHUNK` a `ChunkSink`.
        options: the options of the view that the task is submitted by.

    Raises:
        SerializationError: the arguments cannot be pickled.
        SharedMemoryExhausted: there is no room for big ones.
    """
    timeout, retries, pickler = options.timeout, options.retries, options.pickler
    is_chunk = flags & CHUNK
    kept: Any = None
    data = b""
    packed = arguments
    inside = len(blob) > payload.INLINE_BYTES
    if inside:
        # A big function (a closure with data, say) is sent like a big argument.
        packed = (blob, arguments)
        blob = b""
    if packed:
        try:
            big, data, kept = payload.dump_arguments(packed, pickler, _MOST_BYTES - len(blob))
        except SerializationError as error:
            from mpkit.pool._engine.blame import blame, parts_of_task  # noqa: PLC0415  rarely needed

            parts = parts_of_task(function.name, arguments, flags, sink._next_item())
            raise blame(error, parts, pickler) from error.__cause__
        flags |= big
    if seen_shared:
        kept = (kept, take_seen_shared())
    if retries or is_chunk:
        # The task may be sent again after the death of its worker. The queues, locks and counters among its
        # arguments must not vanish until then, although perhaps no process has them open any more.
        kept = (kept, packed)
    if inside:
        flags = flags & ~BY_REFERENCE | FUNCTION_INSIDE
    if pickler == "cloudpickle":
        flags |= BY_VALUE
    number = next(numbers)
    record = TASK_HEAD.pack(number, len(blob), flags) + blob
    if is_chunk:
        items = len(arguments)
        record += RANGE.pack(0, items) + data
        return Chunk(number, cast("ChunkSink", sink), record, function, timeout, retries, kept, 0, items)
    return Task(number, sink, record + data, function, timeout, retries, kept)
