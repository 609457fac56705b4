"""What becomes of the tasks of a dead worker.

Tasks that it had not begun are queued again, in front; this does not count as a try. The task that it ran is
tried again if it has retries left; otherwise it fails with `WorkerCrashed`. Of a chunk, only the item that
the worker died of may fail; unless it died before the first item, which counts as a death of all of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

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
    """Remove a dead worker, take its outcomes, and queue its other tasks again or end them.

    The dispatcher's lock is held. After an exception (no memory) this is called again.

    Args:
        dispatcher: the dispatcher, which forgets the worker.
        lane: the worker.
        death: how it died.
        numbers: the numbers of new tasks, for the pieces of a chunk.
        settlements: gets the outcomes that are to be told. They have to be told even after an exception.
    """
    ledger = dispatcher.ledger
    begun = dispatcher.bury(lane, settlements)
    # Each outcome is in `settlements` before the ledger forgets the task, so that none is lost by an
    # exception. (A sink that is told twice takes the first outcome.)
    for number in begun[:-1]:
        settlements.append((lane.sent[number], RAISED, _crash_error(lane.sent[number], [death])))
        ledger.finish(lane.key, number, False)
    running = begun[-1] if begun else None
    chunk = None if running is None else lane.sent.get(running)
    if isinstance(chunk, Chunk):
        _divide(ledger, chunk, lane, death, numbers, settlements)
    # If the chunk has been divided, it is no longer among the tasks of the worker.
    for task in ledger.ending_with(lane.key, running):
        error = ending_error(task, lane) if task.ending else _crash_error(task, [*(task.deaths or ()), death])
        settlements.append((task, RAISED, error))
    ledger.lose_worker(lane.key, running, death)


def _divide(
    ledger: Ledger, chunk: Chunk, lane: Lane, death: Death, numbers: Iterator[int], settlements: Settlements
) -> None:
    """The worker of a chunk is dead: replace it by pieces, so that only the item that it died of fails.

    Long items are processed one by one: the item that was being processed is tried again, or fails. In a
    block of short items, any may have been the cause: each of them is sent again by itself, so that it takes
    no other with it if the worker dies again. All others are sent again together.

    The chunk is left whole if it has only one item, if it is being stopped, or if the worker died before the
    first item (presumably while it unpickled the function or the items).
    """
    # If this is called again after an exception (no memory), the pieces are the same as before, and some of
    # them may have been queued.
    pieces = chunk.pieces or _pieces(chunk, lane.words[ITEM], death, numbers)
    if not pieces:
        return
    chunk.pieces = pieces
    crashed = next((piece for piece in pieces if piece.deaths and not piece.retries), None)
    error = None if crashed is None else _crash_error(crashed, [death])
    if all(piece.state == UNSENT for piece in pieces):
        cast("ChunkSink", chunk.sink).split(chunk, pieces)
    if crashed is not None:
        settlements.append((crashed, RAISED, error))
    ledger.divide(chunk, [piece for piece in pieces if piece is not crashed], crashed)


def _pieces(chunk: Chunk, item: int, death: Death, numbers: Iterator[int]) -> list[Chunk]:
    """The pieces that replace a chunk whose worker has died.

    Args:
        chunk: the chunk.
        item: the word `ITEM` of the worker: which items it was processing.
        death: how the worker died.
        numbers: the numbers of new tasks.

    Returns:
        The pieces; empty if the chunk cannot be divided.
    """
    if chunk.ending or not item or chunk.stop - chunk.start == 1:
        return []
    first = min(max(item >> 32, chunk.done), chunk.stop)
    end = min(max(item & 0xFFFF_FFFF, first), chunk.stop)
    parts = [(chunk.done, first), *((k, k + 1) for k in range(first, end)), (end, chunk.stop)]
    pieces = [_piece(chunk, next(numbers), start, stop) for start, stop in parts if start < stop]
    if len(pieces) == 1 and chunk.done == chunk.start:
        # The word says that no item was being processed, and none is done. So something has written over it,
        # and might do so again in each worker that gets these items, for ever.
        return []
    if end - first == 1:
        guilty = next(piece for piece in pieces if piece.start == first)
        guilty.deaths = [death]
    return pieces


def _piece(chunk: Chunk, number: int, start: int, stop: int) -> Chunk:
    """A chunk of the same record, but with these items only."""
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
    message = None
    if len(deaths) > 1:
        each = "; ".join(f"process {death.pid} {how_it_ended(death.exitcode)}" for death in deaths)
        message = (
            f"task {task.number} ({task.function.name}) was tried {len(deaths)} times, "
            f"and its worker died each time: {each}"
        )
    return WorkerCrashed(message, task_id=task.number, **deaths[-1]._asdict())
