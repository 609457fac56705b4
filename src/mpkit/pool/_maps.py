"""Whole maps: many calls of one function in chunks, with one handle for all of them.

A chunk is one task with many calls. An error fails only its own item: the worker goes on with the next one.
When a worker dies, the item that it died of fails or is tried again; the others of its chunk are sent again
unless their results have arrived (`mpkit.pool._engine.losses`). A time limit applies to a whole chunk, so a
map with a time limit sends its items one by one unless told otherwise.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from mpkit._platform.hints import override
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit.errors import TaskCancelled
from mpkit.pool._chunking import automatic_chunks, chunks_of, open_chunk, piece_of
from mpkit.pool._engine.ledger import Chunk, Task
from mpkit.pool._engine.options import TaskOptions
from mpkit.pool._engine.progress import Progress
from mpkit.pool._handle import TaskHandle
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import BIG_VALUE, CHUNK, ERROR, PART, PLAIN, RAISED, STAR, VALUE

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine

R = TypeVar("R")


class _MapSink:
    """Passes the outcomes of the chunks of one map on to its handle."""

    _can_be_told_again = False

    def __init__(self, owner: MapHandle[Any]) -> None:
        self._map: MapHandle[Any] | None = owner
        #: Kept alive until all items have ended, with the shared objects in it (as in a `functools.partial`).
        self.function: object = None
        self._items = 0
        #: Chunks that have not ended, by number.
        self.tasks: dict[int, Task] = {}

    def _sent(self, task: Task) -> None:
        self.tasks[task.number] = task
        task.offset = self._items
        self._items += task.items

    def _next_item(self) -> int:
        return self._items

    def _settle(self, task: Task, kind: int, data: object) -> None:
        if kind != PART:
            self.tasks.pop(task.number, None)
        owner = self._map
        if owner is not None:
            owner.piece_done(*piece_of(task, kind, data))

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> None:
        for piece in pieces:
            self.tasks[piece.number] = piece
        self.tasks.pop(task.number, None)
        owner = self._map
        if owner is not None and owner._is_settled():
            # The map was cancelled before these pieces existed.
            owner._engine.submission.cancel_later(list(pieces))

    def forget(self) -> None:
        """All items have ended: break the reference cycle, so that the results are freed with the handle."""
        self._map = self.function = None


def _decode(pieces: dict[int, tuple[int, int, Any]]) -> tuple[list[Any] | None, BaseException | None]:
    """The results of all pieces in the order of the input, or the first error."""
    results: list[Any] = []
    first: BaseException | None = None
    for _, (length, kind, data) in sorted(pieces.items()):
        value, error = payload.open_outcome(kind, data)
        if error is None and not value[1]:
            results += value[0]
            continue
        outcomes = open_chunk(kind, data, length) if error is not None else open_chunk(PLAIN, value, length)
        if first is None:
            first = next((e for _, e in outcomes if e is not None), None)
        # Needed even after an error: what could not be unpickled a moment ago may have succeeded this time.
        results += [result for result, _ in outcomes]
    return (results, None) if first is None else (None, first)


class MapHandle(TaskHandle[list[R]]):
    """The handle of a whole map: its result is the list of results, in order.

    Raises the first error in the order of the input, as `multiprocessing.Pool.map` does,
    after all items have been tried.
    """

    def __init__(self, engine: Engine, progress: Progress) -> None:
        super().__init__(engine)
        #: Outcomes of neighbouring items, by the index of the first one: number of items, kind, data.
        self._pieces: dict[int, tuple[int, int, Any]] = {}
        self._sink: _MapSink = _MapSink(self)
        self._total = self._missing = 0
        self._has_failures = False
        #: The keys of big pieces that have not been unpickled yet. (Waking a thread to unpickle a small piece
        #: would take longer than unpickling it at the end.)
        self._unopened: deque[int] = deque()
        #: Pieces that have arrived and are not in `_pieces` yet.
        self._brought: deque[tuple[int, int, int, Any]] = deque()
        self._count_lock = InterruptibleLock()
        self._progress = progress

    #: What the pieces were unpickled to, by the first thread that asked.
    _decoded: tuple[list[R] | None, BaseException | None] | None = None

    def start(
        self,
        function: Callable[..., R],
        items: Sequence[Any],
        chunksize: int | None,
        options: TaskOptions,
        *,
        star: bool,
    ) -> None:
        """Send all items, as tasks of one chunk each."""
        self._total = self._missing = len(items)
        engine = self._engine
        if not items:
            self._progress.close()
            self._settle(None, VALUE, None)
            return
        self._sink.function = function
        known, blob, flags = engine.functions.look_up(function, options.pickler)
        flags |= CHUNK | (STAR if star else 0)
        if chunksize is not None:
            chunks = chunks_of(items, chunksize)
        elif options.timeout is not None:
            # The time limit applies to a whole chunk, and must not end innocent items.
            chunks = chunks_of(items, 1)
        else:
            most = engine.options.maxtasksperchild or len(items)
            chunks = automatic_chunks(items, engine.options.processes, most)
        try:
            for chunk in chunks:
                engine.submission.submit(known, blob, flags, chunk, self._sink, options)
        except BaseException:
            # The caller gets no handle, so nobody will ask for what has been sent already.
            engine.submission.cancel_later(list(self._sink.tasks.values()))
            self._progress.close()
            raise

    def piece_done(self, first: int, length: int, kind: int, data: object) -> None:
        """Take the outcome of `length` neighbouring items, from index `first` on."""
        self._brought.append((first, length, kind, data))
        # If this is a signal handler in the middle of this thread's `_note_pieces`, that takes the piece too.
        while self._brought and not self._count_lock.is_owned():
            new, is_last = self._count_lock.run(self._note_pieces)
            self._progress.step(new)
            if is_last:
                self._progress.close()
                # The kind tells `wait(..., FIRST_EXCEPTION)` whether an item has failed.
                self._settle(None, ERROR if self._has_failures else VALUE, None)
                self._sink.forget()

    def _note_pieces(self) -> tuple[int, bool]:
        """Move pieces from `_brought` to `_pieces`: how many more items are done, and whether all are now."""
        new = 0
        while self._brought:
            first, length, kind, data = self._brought.popleft()
            if self._is_settled():
                continue
            if first in self._pieces:
                # Brought again, because the handler of a signal has raised an exception, perhaps just before
                # the piece was counted. So count anew.
                self._missing = self._total - sum(piece[0] for piece in self._pieces.values())
                continue
            self._has_failures = self._has_failures or payload.has_failures(kind, data)
            self._pieces[first] = (length, kind, data)
            if kind == BIG_VALUE:
                self._unopened.append(first)
            self._missing -= length
            # Items that were cancelled, because the pool was terminated, do not count as done.
            if not isinstance(data, TaskCancelled):
                new += length
        return new, not self._missing and not self._is_settled()

    @override
    def _wait(self, timeout: float | None, what: str) -> None:
        if timeout is not None:
            # The timeout does not include unpickling, so nothing is unpickled while waiting.
            super()._wait(timeout, what)
        while not self._is_settled():
            self._engine.lead.wait_for(self, None, until=self._has_come_further)
            self._open_pieces()

    def _has_come_further(self) -> bool:
        return bool(self._unopened) or self._is_settled()

    def _open_pieces(self) -> None:
        """Unpickle the big pieces that have arrived, while the workers are busy with the rest.

        A piece with errors stays as it is: they are found again, and reported, at the end.
        """
        pieces = self._pieces
        while not self._is_settled():
            try:
                first = self._unopened.popleft()
            except IndexError:
                # Another thread may be doing this as well.
                return
            length, kind, data = pieces[first]
            value, error = payload.open_outcome(kind, data)
            if error is None and not value[1]:
                pieces[first] = (length, PLAIN, value)
            # Unpickling may have taken long, and the workers may have run out of tasks meanwhile.
            self._engine.collector.look()

    @override
    def _outcome(self) -> tuple[list[R] | None, BaseException | None]:
        # A map that has ended regularly is settled without data; its outcomes are in the pieces.
        if self._got[0] == RAISED:
            return None, self._got[1]
        # `_pieces` is read before `_decoded`, because another thread stores
        # `_decoded` and then empties `_pieces`.
        pieces = self._pieces
        decoded = self._decoded
        if decoded is None:
            # Two threads may come here at once: both return what the first one has stored. (`setdefault` is
            # a single step, for other threads and for Ctrl-C.)
            decoded = self.__dict__.setdefault("_decoded", _decode(pieces))
            self._pieces = {}
        return decoded

    @override
    def cancel(self) -> bool:
        """Cancel every item that has not ended; running ones are stopped. See `TaskHandle.cancel`."""
        try:
            if self._settle(None, RAISED, TaskCancelled("the map was cancelled")):
                self._progress.close()
                # The last ones first. Otherwise they would begin in the place of
                # running ones that are stopped.
                for task in reversed(list(self._sink.tasks.values())):
                    self._engine.submission.cancel(task)
        except BaseException:
            # Interrupted by Ctrl-C: the remaining tasks must still be cancelled.
            if self.cancelled():
                self._engine.submission.cancel_later(list(self._sink.tasks.values()))
            raise
        return self.cancelled()

    @override
    def running(self) -> bool:
        return not self.done() and any(
            self._engine.insight.running_on(task) is not None for task in list(self._sink.tasks.values())
        )
