"""Lazy maps: many calls of one function, whose results are taken one by one (for chunks see `_maps`).

A lazy map whose items turn out to be short sends them in groups (`GroupedFunction`): chunks whose items the
worker treats as tasks of their own, so each is handed in before the next one begins. Only where nobody can
tell: the input is a collection, so that an item that has been read need not wait for the next one (an
iterator may wait for what the item before it does); the items are plain, so that one pickle for all of them
is as good as one for each; there is no time limit; and workers are not replaced after a number of tasks.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.deadlines import check_timeout
from mpkit._shm.queues.packs import are_plain
from mpkit.errors import SerializationError, SharedMemoryExhausted, WaitTimeout
from mpkit.pool._chunking import open_chunk
from mpkit.pool._engine.functions import Function, GroupedFunction
from mpkit.pool._engine.options import TaskOptions, check_chunksize, check_count
from mpkit.pool._engine.progress import Progress
from mpkit.pool._imap_sink import ImapSink
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import CHUNK, EACH

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine

__all__ = ["LazyMap"]

R = TypeVar("R")

#: Items that an imap holds for each worker unless told otherwise.
_DEFAULT_BUFFER = 256
#: While results are waiting for the consumer, input is read for this long at most.
_READ_SECONDS = 0.001
#: What hinders one item from being sent, and not the next one.
_UNSENDABLE = (SerializationError, SharedMemoryExhausted)
#: Inputs that are just there: reading them calls nobody's code and waits for nothing.
_COLLECTIONS = frozenset({list, tuple, range, set, frozenset, dict, deque, str, bytes, bytearray})


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
        engine.status.check_usable()
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
        self._progress = Progress(progress, _length_of(iterable) if progress else None, self.function.name)
        engine.bars.add(self._progress)
        self.sink: ImapSink = ImapSink(engine, self._progress, function, ordered=ordered)
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
        clock = CLOCK.monotonic
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
            self.engine.submission.submit(
                self.function, self._blob, flags, arguments, self.sink, self._options
            )
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
        sink: ImapSink | None = getattr(self, "sink", None)
        if sink is not None and not _is_finalizing():
            sink.close()

    __del__ = drop


def _length_of(iterable: Any) -> int | None:
    """For a progress bar: what cannot tell its length is shown without."""
    try:
        return len(iterable)
    except Exception:  # noqa: BLE001  some have the method, and raise whatever they like
        return None
