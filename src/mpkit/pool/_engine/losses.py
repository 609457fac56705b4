"""A worker is dead: what becomes of the tasks that it had.

What it had not begun is queued again, in front, and does not count as a try. What it ran is tried again if it
has retries left, and else fails with the death. Of a chunk only the item that the worker died of may fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from mpkit._platform.signals.names import how_it_ended
from mpkit.errors import WorkerCrashed
from mpkit.pool._engine.dispatcher import Dispatcher
from mpkit.pool._engine.lane import Lane
from mpkit.pool._engine.ledger import UNSENT, Chunk, ChunkSink, Death, Ledger, Task
from mpkit.pool._engine.settlements import Settlements, ending_error
from mpkit.pool._protocol.channel import HEAD_SIZE, ITEM, RAISED, RANGE, TASK_HEAD


def settle_loss(
    dispatcher: Dispatcher, lane: Lane, death: Death, numbers: Iterator[int], settlements: Settlements
) -> None:
    """Take what a dead worker left behind out of its channel and the ledger (holding the dispatcher's lock).

    Args:
        dispatcher: that the worker belonged to; it is forgotten there.
        lane: the worker.
        death: how it died.
        numbers: of new tasks, for the pieces of a chunk.
        settlements: gets what its tasks' sinks are to be told; after an exception, too.
    """
    ledger = dispatcher.ledger
    begun = dispatcher.bury(lane, settlements)
    # Each is told before the ledger forgets it: after an exception (no memory) all of this is done again, and
    # who is told twice takes the first.
    for number in begun[:-1]:
        settlements.append((lane.sent[number], RAISED, _crash_error(lane.sent[number], [death])))
        ledger.finish(lane.key, number, False)
    running = begun[-1] if begun else None
    chunk = None if running is None else lane.sent.get(running)
    if isinstance(chunk, Chunk) and _divide(ledger, chunk, lane, death, numbers, settlements):
        running = None
    for task in ledger.ending_with(lane.key, running):
        error = ending_error(task, lane) if task.ending else _crash_error(task, [*(task.deaths or ()), death])
        settlements.append((task, RAISED, error))
    ledger.lose_worker(lane.key, running, death)


def _divide(
    ledger: Ledger, chunk: Chunk, lane: Lane, death: Death, numbers: Iterator[int], settlements: Settlements
) -> bool:
    """The worker of a chunk is dead: only the item that it died of may fail.

    Long items are worked on one by one: the one in hand is tried again or fails. Of a block of short ones
    each may have been the death of the worker: each is sent again alone, so that the guilty one, if there
    is one, takes no other with it. All others are sent again together.

    Returns:
        False when the death is that of the whole chunk: it has one item only, is being stopped, or the
        worker died before the first item (its function or its items cannot be unpickled, it seems).
    """
    # After an exception (no memory) it is divided into the same pieces, some of which may be under way.
    pieces = chunk.pieces or _pieces(chunk, lane.words[ITEM], death, numbers)
    if not pieces:
        return False
    chunk.pieces = pieces
    crashed = next((piece for piece in pieces if piece.deaths and not piece.retries), None)
    error = None if crashed is None else _crash_error(crashed, [death])
    if all(piece.state == UNSENT for piece in pieces):
        cast("ChunkSink", chunk.sink).split(chunk, pieces)
    if crashed is not None:
        settlements.append((crashed, RAISED, error))
    ledger.divide(chunk, [piece for piece in pieces if piece is not crashed], crashed)
    return True


def _pieces(chunk: Chunk, item: int, death: Death, numbers: Iterator[int]) -> list[Chunk]:
    """What stands for a chunk whose worker had the items `item` in hand (see `ITEM`); none: it cannot be
    divided.
    """
    if chunk.ending or not item or chunk.stop - chunk.start == 1:
        return []
    first = min(max(item >> 32, chunk.done), chunk.stop)
    end = min(max(item & 0xFFFF_FFFF, first), chunk.stop)
    parts = [(chunk.done, first), *((k, k + 1) for k in range(first, end)), (end, chunk.stop)]
    pieces = [_piece(chunk, next(numbers), start, stop) for start, stop in parts if start < stop]
    if len(pieces) == 1 and chunk.done == chunk.start:
        # It has begun, and nothing is done or in hand: something has written over that word, and might do so
        # in each worker that is given the same items, for ever.
        return []
    if end - first == 1:
        guilty = next(piece for piece in pieces if piece.start == first)
        guilty.deaths = [death]
    return pieces


def _piece(chunk: Chunk, number: int, start: int, stop: int) -> Chunk:
    """The same work, but these items only."""
    record = chunk.record
    _, length, flags = TASK_HEAD.unpack_from(record)
    at = HEAD_SIZE + length
    record = b"".join(
        (
            TASK_HEAD.pack(number, length, flags),
            record[HEAD_SIZE:at],
            RANGE.pack(start, stop),
            record[at + RANGE.size :],
        )
    )
    sink = cast("ChunkSink", chunk.sink)
    piece = Chunk(number, sink, record, chunk.function, chunk.timeout, chunk.retries, chunk.kept, start, stop)
    piece.offset = chunk.offset
    return piece


def _crash_error(task: Task, deaths: list[Death]) -> WorkerCrashed:
    last = deaths[-1]
    fields: dict[str, Any] = {
        "task_id": task.number,
        "pid": last.pid,
        "exitcode": last.exitcode,
        "signal": last.signal,
        "stack": last.stack or None,
        "rss_bytes": last.rss_bytes,
        "likely_oom": last.likely_oom,
    }
    error = WorkerCrashed(**fields)
    if len(deaths) > 1:
        each = "; ".join(f"process {death.pid} {how_it_ended(death.exitcode)}" for death in deaths)
        error = WorkerCrashed(
            f"task {task.number} ({task.function.name}) was tried {len(deaths)} times, "
            f"and its worker died each time: {each}",
            **fields,
        )
    return error
