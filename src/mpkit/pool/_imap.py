"""Lazy maps: many calls of one function, whose results are taken one by one (for chunks see `_maps`).

A lazy map whose items turn out to be short sends them in groups (`GroupedFunction`): chunks whose items the
worker treats as tasks of their own, so each is handed in before the next one begins. Only where nobody can
tell: the input is a collection, so that an item that has been read need not wait for the next one (an
iterator may wait for what the item before it does); the items are plain, so that one pickle for all of them
is as good as one for each; there is no time limit; and workers are not replaced after a number of tasks.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mpkit._platform.hints import Self
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import seam
from mpkit._platform.threads.deadlines import check_timeout
from mpkit._shm.queues.packs import are_plain
from mpkit._wire.unsendable import Unsendable
from mpkit.errors import SerializationError, SharedMemoryExhausted, TaskCancelled, WaitTimeout
from mpkit.pool._chunking import open_chunk, piece_of
from mpkit.pool._engine.functions import Function, GroupedFunction
from mpkit.pool._engine.ledger import SENT, UNSENT, Chunk, Task
from mpkit.pool._engine.options import TaskOptions, check_chunksize, check_count
from mpkit.pool._engine.progress import Progress
from mpkit.pool._handle import CONDITION_SECONDS
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import CHUNK, EACH, PART, RAISED, SOON

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine

__all__ = ["ImapIterator", "LazyMap"]

R = TypeVar("R")

#: Items that an imap holds for each worker unless told otherwise.
_DEFAULT_BUFFER = 256
#: While results are waiting for the consumer, input is read for this long at most.
_READ_SECONDS = 0.001
#: What hinders one item from being sent, and not the next one.
_UNSENDABLE = (SerializationError, SharedMemoryExhausted)
#: Inputs that are just there: reading them calls nobody's code and waits for nothing.
_COLLECTIONS = frozenset({list, tuple, range, set, frozenset, dict, deque, str, bytes, bytearray})


class _ImapSink:
    """Where the outcomes of a lazy map arrive.

    The tasks hold it, and not the iterator, which so ends when its user drops it. It is what the collector
    waits for as well.
    """

    _can_be_told_again = False

    def __init__(self, engine: Engine, progress: Progress, function: object, *, ordered: bool) -> None:
        self._engine = engine
        # Shared objects in it live as long as there are tasks of it.
        self._function: object = function
        self._progress = progress
        self.ordered = ordered
        #: Items that have been sent, and those of them that `take` has given out.
        self.sent_items: int = 0
        self.next: int = 0
        #: Tasks that have not ended, by number.
        self.tasks: dict[int, Task] = {}
        # In the order of the input; for the ordered iterator alone.
        self._order: deque[Task] = deque()
        # Outcomes of neighbouring items (how many, kind, data, whether of a chunk): in the order of arrival,
        # or by the first one.
        self._arrived: deque[tuple[int, int, object, bool]] = deque()
        self._by_first: dict[int, tuple[int, int, object, bool]] = {}
        #: As many as there are threads that are just bringing an outcome.
        self._arriving: deque[None] = deque()
        self._latest: Task | None = None
        self._is_closed = False
        self._made_condition: threading.Condition | None = None

    # -- of tasks --------------------------------------------------------------------------------------------

    def _sent(self, task: Task) -> None:
        """Remember a task that is about to be sent."""
        self._latest = task
        self.tasks[task.number] = task
        task.offset = self.sent_items
        self.sent_items += task.items
        if self.ordered:
            self._order.append(task)

    def _next_item(self) -> int:
        return self.sent_items

    def forget_unsent(self) -> None:
        """Sending the latest task has failed: if it never got to the pool, nothing will come of it."""
        with deferred_interrupts():
            task, self._latest = self._latest, None
            # Ctrl-C may also come when the pool has it already.
            if task is None or not self._engine.dispatcher.lock.run(self._is_nowhere, task):
                return
            self.tasks.pop(task.number, None)
            self.sent_items = task.offset
            if self._order and self._order[-1] is task:
                self._order.pop()

    def _is_nowhere(self, task: Task) -> bool:
        """Whether the pool does not know the task (holding the dispatcher's lock)."""
        if task.state == SENT:
            return task.number not in self._engine.dispatcher.ledger.sent.get(task.worker, ())
        return task.state == UNSENT

    def fail_next(self, error: BaseException) -> None:
        """The next item cannot be sent, so this is its outcome."""
        first = self.sent_items
        self.sent_items += 1
        self._arrive(first, 1, RAISED, error, of_chunk=False)

    def _settle(self, task: Task, kind: int, data: object) -> None:
        """Take the outcome of a task, or a part of it."""
        first, length, inner, data = piece_of(task, kind, data)
        # See `is_idle`.
        self._arriving.append(None)
        try:
            if isinstance(task, Chunk):
                if first in task.told:
                    return
                task.told[first] = length
            elif self.tasks.pop(task.number, None) is None:
                return
            if self._is_closed:
                return
            self._arrive(first, length, inner, data, of_chunk=isinstance(task, Chunk))
            if isinstance(task, Chunk):
                if kind != PART:
                    task.drained = True
                if task.drained:
                    self._forget_if_told(task)
        finally:
            self._arriving.pop()
        condition = self._made_condition
        if condition is not None:
            # Not for ever: who sleeps at it sleeps in slices, and the collector's thread must go on.
            seam.InterruptibleLock(condition).run_within(CONDITION_SECONDS, condition.notify_all)

    def split(self, task: Chunk, pieces: Sequence[Chunk]) -> None:
        """Pieces stand from now on for what of a task had not been done."""
        for piece in pieces:
            self.tasks[piece.number] = piece
        task.stop = task.done
        task.drained = True
        self._forget_if_told(task)
        if self._is_closed:
            self._engine.cancel_later(list(pieces))

    def _forget_if_told(self, task: Chunk) -> None:
        # Its end may be told while another thread still has an earlier part of it in its hands. Each notes
        # what it brings, then looks whether that was the end: so the last one finds nothing missing.
        if sum(list(task.told.values())) >= task.items:
            self.tasks.pop(task.number, None)

    def _arrive(self, first: int, length: int, kind: int, data: object, *, of_chunk: bool) -> None:
        outcome = (length, kind, data, of_chunk)
        if self.ordered:
            self._by_first[first] = outcome
        else:
            self._arrived.append(outcome)
        # What was cancelled, at the end of the pool say, has not been done.
        if not isinstance(data, TaskCancelled):
            self._progress.step(length)

    # -- what the collector waits for ------------------------------------------------------------------------

    @property
    def task_id(self) -> int:
        """What the workers should ring for."""
        order = self._order
        if self.ordered and order and order[0].number in self.tasks:
            return order[0].number
        return SOON

    def _is_settled(self) -> bool:
        """Whether there is nothing to wait for: the next outcome is there, or none will come.

        The last one may be taken while the thread that has brought it is not done with it: whoever asks for
        another one then finds this not idle yet, and has to be told when it is.
        """
        return self.has_next() or self.is_idle()

    def has_next(self) -> bool:
        """Whether the next outcome is there."""
        return self.next in self._by_first if self.ordered else bool(self._arrived)

    def is_idle(self) -> bool:
        """Whether nothing is there, and nothing will come of what has been sent."""
        # In this order, the reverse of that in `_settle`: what another thread is bringing is seen somewhere.
        return not self.tasks and not self._arriving and not self.has_next()

    def _ensure_condition(self) -> threading.Condition:
        """What to sleep on while another thread leads."""
        if self._made_condition is None:
            self._made_condition = threading.Condition()
        return self._made_condition

    # -- of the iterator -------------------------------------------------------------------------------------

    def take(self) -> tuple[int, int, object, bool]:
        """The next outcome, which is there: of how many items, its kind and data, whether of a chunk."""
        if not self.ordered:
            return self._arrived.popleft()
        first = self.next
        outcome = self._by_first[first]
        # First: after Ctrl-C in between, an item is lost, but nobody waits for it.
        self.next += outcome[0]
        del self._by_first[first]
        order = self._order
        while order and order[0].offset + order[0].items <= self.next:
            order.popleft()
        return outcome

    def close(self) -> None:
        """Cancel what has not ended, and forget what has. Takes no lock, and may be called again."""
        self._is_closed = True
        # It has this sink, and would stay with it, and with the function, until the next garbage collection.
        self._latest = None
        engine = self._engine
        if engine.pid == os.getpid():
            if self.tasks:
                engine.cancel_later(list(self.tasks.values()))
            if self._progress.is_shown:
                engine.supervisor.request(self._progress.close)
        self.tasks.clear()
        self._order.clear()
        self._arrived.clear()
        self._by_first.clear()


class LazyMap(Generic[R]):
    """A lazy map: reads its input, sends it, and gives out the results. What has it is `ImapIterator`, or
    `SharedResults`; when that goes, what has not been delivered is cancelled.
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
        self.engine = engine
        self._chunksize = check_chunksize(chunksize)
        processes = engine.options.processes
        if buffersize is None:
            self._most = max(_DEFAULT_BUFFER, 4 * self._chunksize) * processes
        else:
            self._most = check_count(buffersize, "buffersize")
            self._chunksize = min(self._chunksize, self._most)
        engine.check_usable()
        self._input: Iterator[Any] | None = iter(iterable)
        self._options = options
        known, self._blob, self._flags = engine.functions.look_up(function, options.pickler)
        self.function: Function = known
        self._groups: GroupedFunction | None = None
        if (
            self._chunksize == 1
            and type(iterable) in _COLLECTIONS
            and options.timeout is None
            and engine.options.maxtasksperchild is None
        ):
            # Two groups for each worker, and as many results on their way, leave nobody without work.
            self.function = self._groups = GroupedFunction(self.function, self._most // (4 * processes) or 1)
        #: Items whose results the consumer has.
        self._delivered = 0
        self._current: deque[tuple[Any, BaseException | None]] = deque()
        #: What comes after all results: the error of the input, or why the pool takes no more.
        self._last_error: BaseException | None = None
        try:
            total = len(iterable)  # type: ignore[arg-type]  # where it has a length
        except TypeError:
            total = None
        self._progress = Progress(progress, total, self.function.name)
        engine.bars.add(self._progress)
        self.sink: _ImapSink = _ImapSink(engine, self._progress, function, ordered=ordered)
        self.read()

    @property
    def held(self) -> int:
        """Items between input and consumer."""
        return self.sink.sent_items - self._delivered

    @property
    def is_all_read(self) -> bool:
        """Whether there is no more input."""
        return self._input is None

    def has_next(self) -> bool:
        """Whether the next result is there."""
        return bool(self._current) or self.sink.has_next()

    # -- reading the input -----------------------------------------------------------------------------------

    def read(self) -> None:
        """Send more, as long as there is room and nothing better to do."""
        source = self._input
        if source is None:
            return
        engine, sink, size, groups = self.engine, self.sink, self._chunksize, self._groups
        most = self._delivered + self._most
        clock = time.monotonic
        deadline = clock() + _READ_SECONDS
        while sink.sent_items + size <= most:
            if groups is not None:
                size = min(groups.size, most - sink.sent_items)
            chunk: list[Any] = []
            try:
                for item in source:
                    chunk.append(item)
                    if len(chunk) >= size:
                        break
            except Exception as error:  # noqa: BLE001  it comes out of the iteration, at its place
                self._last_error = error
                self._input = None
            except BaseException:
                # Ctrl-C is not put off until the tasks have ended.
                self._input = None
                raise
            if len(chunk) < size:
                self._input = None
            if chunk:
                try:
                    self._submit(chunk)
                except Exception as error:  # noqa: BLE001  it comes out of the iteration, after all results
                    # The pool is closed, say. What has been sent has results all the same.
                    self._last_error = error
                    self._input = None
                except BaseException:
                    self._input = None
                    raise
            if self._input is None:
                return
            # After each one, as the next one may block. A look at the clock costs little beside sending.
            if clock() > deadline and (self._current or sink.has_next() or engine.dispatcher.has_outcomes()):
                return

    def _submit(self, chunk: list[Any]) -> None:
        """Send what has just been read: as a chunk, as a group, or one by one."""
        if self._chunksize > 1:
            self._submit_chunk(self._flags | CHUNK, chunk)
        elif len(chunk) > 1 and are_plain(chunk):
            self._submit_chunk(self._flags | CHUNK | EACH, chunk)
        else:
            self._submit_each(self._flags, zip(chunk))

    def _submit_chunk(self, flags: int, chunk: list[Any]) -> None:
        try:
            self._submit_task(flags, chunk)
        except _UNSENDABLE:
            # One by one: so it is seen which of them cannot be pickled.
            self._submit_each(flags, ([item] for item in chunk))

    def _submit_each(self, flags: int, each: Iterable[Sequence[Any]]) -> None:
        for arguments in each:
            try:
                self._submit_task(flags, arguments)
            except _UNSENDABLE as error:
                self.sink.fail_next(error)

    def _submit_task(self, flags: int, arguments: Any) -> None:
        try:
            self.engine.submit(self.function, self._blob, flags, arguments, self.sink, self._options)
        except BaseException:
            self.sink.forget_unsent()
            raise

    # -- the results -----------------------------------------------------------------------------------------

    def next(self, timeout: float | None = None) -> R:
        """The next result, waiting for it for `timeout` seconds; see `ImapIterator.next`."""
        current = self._current
        if not current:
            timeout = check_timeout(timeout)
            self._fetch(timeout)
        value, error = current.popleft()
        self._delivered += 1
        if error is not None:
            try:
                raise error
            finally:
                del error
        return value  # type: ignore[no-any-return]  # the value of a call that succeeded is an R

    def _fetch(self, timeout: float | None) -> None:
        """Have at least one outcome in `_current`."""
        sink = self.sink
        if self._input is not None and (self.held < self._most // 2 or not sink.has_next()):
            self.read()
        while not sink.has_next():
            if sink.is_idle():
                # Ctrl-C may have taken an item that was about to be delivered.
                self._delivered = sink.sent_items
                if self._input is None:
                    self._progress.close()
                    error, self._last_error = self._last_error, None
                    if error is not None:
                        raise error
                    raise StopIteration
                self.read()
            elif not self.engine.lead.wait_for(sink, timeout):
                raise WaitTimeout(f"no result within {timeout:g} s; the iteration can go on")
        length, kind, data, of_chunk = sink.take()
        if of_chunk:
            self._current.extend(open_chunk(kind, data, length))
        else:
            self._current.append(payload.open_outcome(kind, data))

    def read_all(self) -> None:
        """Read and send the rest of the input now; see `ImapIterator.read_all`."""
        self._most = sys.maxsize
        while self._input is not None:
            self.read()

    def close(self) -> None:
        """Cancel what has not been delivered; the iteration is over."""
        self._input = None
        self._last_error = None
        self._progress.close()
        self.sink.close()
        self._current.clear()
        self._delivered = self.sink.sent_items

    def drop(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Cancel what has not been delivered: nobody will ask for it. May be called again."""
        # In whatever thread the garbage collector runs, perhaps within a step of the progress bar or of the
        # pool: so this takes no lock. At the end of the interpreter globals are gone, and the pool has ended.
        sink: _ImapSink | None = getattr(self, "sink", None)
        if sink is not None and not _is_finalizing():
            sink.close()

    __del__ = drop


class ImapIterator(Unsendable, Generic[R]):
    """What `imap` and `imap_unordered` return: an iterator over the results that reads its input as it goes.

    It reads at most `buffersize` items ahead of the results that are taken, in the thread that asks for
    them, so the iterable may be infinite, slow, or bound to a thread; if it blocks, results that are
    ready are delayed by at most one item (with a `chunksize`, by one chunk).

    If an item fails, or cannot be pickled, `next` raises its error; the iteration can go on after that. If
    the pool accepts no more tasks, because it was closed or is broken, the results of what had been sent come
    first, and then that error. Dropping or closing the iterator, or the end of its `with` block, cancels what
    it has not delivered.

    Safe from: one thread at a time.
    """

    _instead = "send the results that it yields"

    def __init__(self, lazy: LazyMap[R]) -> None:
        self._lazy = lazy

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        try:
            return self._lazy.next(None)
        except BaseException:
            # Whoever keeps the traceback (a notebook, after its stop button) does not keep the iterator.
            del self
            raise

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Args:
            timeout: Seconds to wait; None: until there is one.

        Raises:
            StopIteration: There are no more.
            WaitTimeout: The time ran out; you may ask again.
            SerializationError: This item, or its result, cannot be pickled.
            RuntimeError: This item's call raised StopIteration, which is the cause where `chunksize` is 1.
            Exception: What this item's call raised; or, after all results, what the input raised, or why the
                pool accepted no more tasks.

        Blocking: until the next result is there.
        """
        try:
            return self._lazy.next(timeout)
        except BaseException:
            del self  # as in `__next__`
            raise

    def read_all(self) -> None:
        """Read and send the rest of the input now, ignoring `buffersize`. Never returns for infinite input.

        Useful if you close the pool before you have taken the results.
        """
        self._lazy.read_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything that has not been delivered; the iteration is over."""
        self._lazy.close()

    def __del__(self) -> None:
        # The map itself may stay: the traceback of an interrupt has its frames.
        lazy: LazyMap[R] | None = getattr(self, "_lazy", None)
        if lazy is not None:
            lazy.drop()

    def __repr__(self) -> str:
        lazy = self._lazy
        order = "ordered" if lazy.sink.ordered else "unordered"
        state = "all read" if lazy.is_all_read else "reading"
        return f"<ImapIterator of {lazy.function.name}, {order}, {state}, {lazy.held} items under way>"
