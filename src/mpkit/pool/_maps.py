"""The map family: many calls of one function, in chunks or lazily.

A chunk is one task with many calls. An error fails its own item: the worker goes on with the next one. A
worker that *dies* takes the whole chunk that it was working on, so maps with retries or a time limit send
items one by one unless told otherwise.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from typing_extensions import Self, override

from mpkit._platform.deadlines import check_timeout
from mpkit._wire import failure
from mpkit.errors import TaskCancelled, WaitTimeout
from mpkit.pool import _payload as payload
from mpkit.pool._channel import CHUNK, PLAIN, RAISED, SOON, STAR
from mpkit.pool._handle import TaskHandle
from mpkit.pool._ledger import Task
from mpkit.pool._options import TaskOptions, check_count

if TYPE_CHECKING:
    from mpkit.pool._engine import Engine

__all__ = ["ImapIterator", "MapHandle"]

R = TypeVar("R")

#: Items that an imap holds for each worker unless told otherwise.
_DEFAULT_BUFFER = 256
#: While results are waiting for the consumer, input is read for this long at most.
_READ_SECONDS = 0.001
_MOST_AT_ONCE = 64


def chunks_of(items: list[Any], size: int) -> Iterator[list[Any]]:
    """Slices of `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def automatic_chunksize(length: int, engine: Engine, options: TaskOptions) -> int:
    """Four chunks for each worker, as `multiprocessing.Pool.map` does; one by one where a lost worker or a
    time limit must hit one item only.
    """
    if options.timeout is not None or options.retries:
        return 1
    size = -(-length // (4 * engine.options.processes)) or 1
    tasks = engine.options.maxtasksperchild
    return size if tasks is None else min(size, tasks)


def open_chunk(kind: int, data: object, length: int) -> list[tuple[Any, BaseException | None]]:
    """The outcomes of the items of a chunk."""
    value, error = payload.open_outcome(kind, data)
    if error is not None:
        return [(None, error)] * length
    results, errors = value
    outcomes: list[tuple[Any, BaseException | None]] = [(result, None) for result in results]
    for index, packed in errors:
        outcomes[index] = (None, failure.unpack_exception(packed))
    return outcomes


class Progress:
    """A progress bar that counts items (tqdm), or nothing."""

    def __init__(self, wanted: bool, total: int | None, what: str) -> None:
        self._bar: Any = None
        self._lock = threading.Lock()
        if wanted:
            try:
                from tqdm.auto import tqdm  # noqa: PLC0415  an extra
            except ImportError as error:
                raise ImportError("progress=True needs the package tqdm: install mpkit[progress]") from error
            self._bar = tqdm(total=total, desc=what)

    def step(self, items: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            with self._lock:
                if self._bar is not None:
                    self._bar.update(items)

    def close(self) -> None:
        """No more will come."""
        if self._bar is not None:
            with self._lock:
                bar, self._bar = self._bar, None
                if bar is not None:
                    bar.close()


class _ChunkSink:
    __slots__ = ("_index", "_length", "_map", "task")

    def __init__(self, owner: MapHandle[Any], index: int, length: int) -> None:
        self._map = owner
        self._index = index
        self._length = length
        self.task: Task | None = None

    def sent(self, task: Task) -> None:
        self.task = task

    def settle(self, task: Task, kind: int, data: object) -> None:  # noqa: ARG002  a Sink
        self.task = None
        self._map.chunk_done(self._index, self._length, kind, data)


class MapHandle(TaskHandle[list[R]]):
    """The handle of a whole map: its result is the list of results, in order.

    Raises the first error in the order of the input, as `multiprocessing.Pool.map` does, after all items have
    been tried.
    """

    def __init__(self, engine: Engine, progress: Progress) -> None:
        super().__init__(engine)
        self._parts: list[tuple[int, Any, int] | None] = []
        self._sinks: list[_ChunkSink] = []
        self._missing = 0
        self._count_lock = threading.Lock()
        self._progress = progress
        self._decoded: tuple[list[R] | None, BaseException | None] | None = None

    def start(
        self,
        function: Callable[..., R],
        items: list[Any],
        chunksize: int,
        options: TaskOptions,
        *,
        star: bool,
    ) -> None:
        """Send everything."""
        chunks = list(chunks_of(items, chunksize))
        self._parts = [None] * len(chunks)
        self._sinks = [_ChunkSink(self, index, len(chunk)) for index, chunk in enumerate(chunks)]
        self._missing = len(chunks)
        engine = self._engine
        if not chunks:
            self._progress.close()
            self.settle(None, PLAIN, None)
            return
        known, blob, flags = engine.function(function, options)
        flags |= CHUNK | (STAR if star else 0)
        sent = 0
        try:
            for sink, chunk in zip(self._sinks, chunks, strict=True):
                engine.submit(known, blob, flags, chunk, sink, options, len(chunk))
                sent += 1
        except BaseException:
            # Nobody will ever ask for what has been sent already.
            for sink in self._sinks[:sent]:
                if sink.task is not None:
                    engine.cancel(sink.task)
            self._progress.close()
            raise

    def chunk_done(self, index: int, length: int, kind: int, data: object) -> None:
        """One chunk has ended."""
        with self._count_lock:
            if self._parts[index] is not None:
                return
            self._parts[index] = (kind, data, length)
            self._missing -= 1
            missing = self._missing
        self._progress.step(length)
        if not missing:
            self._progress.close()
            self.settle(None, PLAIN, None)

    @override
    def _outcome(self) -> tuple[list[R] | None, BaseException | None]:
        if self._got[0] == RAISED:
            return None, self._got[1]
        if self._decoded is None:
            results: list[R] = []
            first: BaseException | None = None
            for part in self._parts:
                assert part is not None
                kind, data, length = part
                value, error = payload.open_outcome(kind, data)
                if error is None and not value[1]:
                    results += value[0]
                    continue
                outcomes = [(None, error)] * length if error is not None else open_chunk(PLAIN, value, length)
                first = first or next((e for _, e in outcomes if e is not None), None)
            self._decoded = (results, None) if first is None else (None, first)
            self._parts = []
        return self._decoded

    @override
    def cancel(self) -> bool:
        """Cancel every item that has not ended; those that run are stopped."""
        if self.settle(None, RAISED, TaskCancelled("the map was cancelled")):
            self._progress.close()
            for sink in self._sinks:
                if sink.task is not None:
                    self._engine.cancel(sink.task)
        return self.cancelled()

    @override
    def running(self) -> bool:
        return not self.done() and any(
            sink.task is not None and self._engine.running_on(sink.task) is not None for sink in self._sinks
        )


class ImapIterator(Generic[R]):
    """What `imap` and `imap_unordered` return: an iterator over the results that reads its input as it goes.

    It holds at most `buffersize` items between input and consumer. Input is read in the thread that asks for
    results, so the iterable may be infinite, slow, or bound to a thread; one that blocks delays the results
    that are ready by one item at most.

    An item that failed raises its error from `next`; the iteration can go on after it. Dropping or closing
    the iterator cancels what it has not delivered.

    Safe from: one thread at a time.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[[Any], R],
        iterable: Iterable[Any],
        chunksize: int,
        buffersize: int | None,
        options: TaskOptions,
        *,
        ordered: bool,
        progress: bool,
    ) -> None:
        self._engine = engine
        self._chunksize = check_count(chunksize, "chunksize")
        processes = engine.options.processes
        if buffersize is None:
            self._most = max(_DEFAULT_BUFFER, 4 * self._chunksize) * processes
        else:
            self._most = check_count(buffersize, "buffersize")
            self._chunksize = min(self._chunksize, self._most)
        self._input: Iterator[Any] | None = iter(iterable)
        self._options = options
        self._function, self._blob, self._flags = engine.function(function, options)
        if self._chunksize > 1:
            self._flags |= CHUNK
        self._ordered = ordered
        self._held = 0
        # Outcomes of chunks: in the order of arrival, or by the number of the task.
        self._arrived: deque[tuple[int, object, int]] = deque()
        self._by_number: dict[int, tuple[int, object, int]] = {}
        self._order: deque[int] = deque()
        self._tasks: dict[int, Task] = {}
        self._current: deque[tuple[Any, BaseException | None]] = deque()
        self._input_error: BaseException | None = None
        self._made_condition: threading.Condition | None = None
        self._lock = threading.Lock()
        try:
            total = len(iterable)  # type: ignore[arg-type]  # where it has a length
        except TypeError:
            total = None
        self._progress = Progress(progress, total, self._function.name)
        self._read()

    # -- as a sink -------------------------------------------------------------------------------------------

    def sent(self, task: Task) -> None:
        """Remember a task of this iterator."""
        self._tasks[task.number] = task
        if self._ordered:
            self._order.append(task.number)

    def settle(self, task: Task, kind: int, data: object) -> None:
        """Take the outcome of a chunk."""
        if self._tasks.pop(task.number, None) is None:
            return
        if self._ordered:
            self._by_number[task.number] = (kind, data, task.weight)
        else:
            self._arrived.append((kind, data, task.weight))
        self._progress.step(task.weight)
        condition = self._made_condition
        if condition is not None:
            with condition:
                condition.notify_all()

    # -- as something that the collector waits for -----------------------------------------------------------

    @property
    def task_id(self) -> int:
        """What the workers should ring for."""
        return self._order[0] if self._ordered and self._order else SOON

    def is_settled(self) -> bool:
        """Whether the next outcome is there."""
        if self._ordered:
            return bool(self._order) and self._order[0] in self._by_number
        return bool(self._arrived)

    def make_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads."""
        if self._made_condition is None:
            self._made_condition = threading.Condition()
        return self._made_condition

    # -- reading the input -----------------------------------------------------------------------------------

    def _read(self) -> None:
        """Send more, as long as there is room and nothing better to do."""
        source = self._input
        if source is None:
            return
        engine, size = self._engine, self._chunksize
        deadline = 0.0
        number = 0
        while self._held + size <= self._most:
            chunk: list[Any] = []
            try:
                for item in source:
                    chunk.append(item)
                    if len(chunk) >= size:
                        break
            except BaseException as error:  # noqa: BLE001  whatever the input raises comes out of the iteration, at its place
                self._input_error = error
                self._input = None
            if len(chunk) < size:
                self._input = None
            if chunk:
                self._held += len(chunk)
                arguments = chunk if self._flags & CHUNK else (chunk[0],)
                try:
                    engine.submit(
                        self._function, self._blob, self._flags, arguments, self, self._options, len(chunk)
                    )
                except BaseException:
                    self._held -= len(chunk)
                    self._input = None
                    raise
            if self._input is None:
                return
            number += 1
            if number & 7 == 0 or size > 1:
                now = time.monotonic()
                if not deadline:
                    deadline = now + _READ_SECONDS
                elif now > deadline and (
                    self._current or self.is_settled() or engine.dispatcher.has_outcomes()
                ):
                    return

    # -- the iterator ----------------------------------------------------------------------------------------

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Args:
            timeout: Seconds to wait; None: until there is one.

        Raises:
            StopIteration: There are no more.
            WaitTimeout: The time was over; it can be asked for again.
            Exception: What this item's call raised, or what the input raised.

        Blocking: until the next result is there.
        """
        current = self._current
        if not current:
            timeout = check_timeout(timeout)
            self._fetch(timeout)
        value, error = current.popleft()
        self._held -= 1
        if error is not None:
            try:
                raise error
            finally:
                del error
        return value  # type: ignore[no-any-return]  # the value of a call that succeeded is an R

    def _fetch(self, timeout: float | None) -> None:
        """Have at least one outcome in `_current`."""
        if self._input is not None and (self._held < self._most // 2 or not self.is_settled()):
            self._read()
        if not self.is_settled():
            if not self._tasks and not (self._order if self._ordered else self._arrived):
                self._progress.close()
                error, self._input_error = self._input_error, None
                if error is not None:
                    raise error
                raise StopIteration
            if not self._engine.collector.wait_for(self, timeout):
                raise WaitTimeout(f"no result within {timeout:g} s; the iteration can go on")
        if self._ordered:
            kind, data, length = self._by_number.pop(self._order.popleft())
        else:
            kind, data, length = self._arrived.popleft()
        if self._flags & CHUNK:
            self._current.extend(open_chunk(kind, data, length))
        else:
            self._current.append(payload.open_outcome(kind, data))

    def read_all(self) -> None:
        """Read and send the rest of the input now, whatever `buffersize` says; an infinite input never ends.

        For those who close the pool before they have taken the results.
        """
        self._most = sys.maxsize
        while self._input is not None:
            self._read()

    def close(self) -> None:
        """Cancel what has not been delivered; the iteration is over."""
        self._input = None
        self._progress.close()
        self._engine.cancel_later(list(self._tasks.values()))
        self._tasks.clear()
        self._order.clear()
        self._arrived.clear()
        self._by_number.clear()
        self._current.clear()

    def __repr__(self) -> str:
        order = "ordered" if self._ordered else "unordered"
        state = "reading" if self._input is not None else "all read"
        return f"<ImapIterator of {self._function.name}, {order}, {state}, {self._held} items under way>"

    def __del__(self) -> None:
        if getattr(self, "_tasks", None):
            self.close()
