"""Lazy maps: many calls of one function, whose results are taken one by one (for chunks see `_maps`).

If the items turn out to be short, a lazy map sends them in *groups* (`GroupedFunction`): chunks whose items
the worker treats as tasks of their own, so each outcome is handed in before the next item begins. This is
done only if it makes no visible difference:

- the input is a built-in collection. (An iterator may wait for what the previous item does, and an item must
  not be held back until the next one has been read.)
- the items are plain, so one pickle for all of them is as good as one for each;
- there is no time limit, and workers are not replaced after a number of tasks.
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

R = TypeVar("R")

#: The default of `buffersize`, per worker.
_DEFAULT_BUFFER = 256
#: While results are waiting for the consumer, input is read for this long at most.
_READ_SECONDS = 0.001
#: Errors that concern a single item: others can still be sent.
_UNSENDABLE = (SerializationError, SharedMemoryExhausted)
#: Types of input whose iteration runs no code of the program and waits for nothing.
_COLLECTIONS = frozenset({list, tuple, range, set, frozenset, dict, deque, str, bytes, bytearray})


class LazyMap(Generic[R]):
    """Reads the input of a lazy map, sends it, and returns the results.

    It belongs to an `ImapIterator` or `SharedResults`. When that is dropped, everything that has not been
    delivered is cancelled.
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
        engine.status.check_usable()
        self.engine = engine
        self._chunksize = check_chunksize(chunksize)
        processes = engine.options.processes
        if buffersize is None:
            self._most = max(_DEFAULT_BUFFER, 4 * self._chunksize) * processes
        else:
            self._most = check_count(buffersize, "buffersize")
            self._chunksize = min(self._chunksize, self._most)
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
            # At most a quarter of each worker's share of the buffer: room for two groups per worker, and for
            # the results of as many on their way to the consumer.
            self.function = self._groups = GroupedFunction(self.function, self._most // (4 * processes) or 1)
        #: How many results the consumer has taken.
        self._delivered = 0
        # Outcomes that have been taken out of the sink, and unpickled.
        self._current: deque[tuple[Any, BaseException | None]] = deque()
        #: Raised after all results: the error of the input, or why the pool takes no more tasks.
        self._last_error: BaseException | None = None
        self._progress = Progress(progress, _length_of(iterable) if progress else None, self.function.name)
        engine.bars.add(self._progress)
        self.sink: ImapSink = ImapSink(engine, self._progress, function, ordered=ordered)
        self.read()

    @property
    def held(self) -> int:
        """How many items have been sent whose results the consumer has not taken."""
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
        """Read and send more input: until the buffer is full, or results have been waiting for a moment."""
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
            except Exception as error:  # noqa: BLE001  the iterator raises it, after the results
                self._last_error = error
                self._input = None
            except BaseException:
                # Ctrl-C is raised at once, and not after the results.
                self._input = None
                raise
            if len(chunk) < size:
                self._input = None
            if chunk:
                try:
                    self._submit(chunk)
                except Exception as error:  # noqa: BLE001  the iterator raises it, after the results
                    # The pool has been closed, say. Items that have been sent have results all the same.
                    self._last_error = error
                    self._input = None
                except BaseException:
                    self._input = None
                    raise
            if self._input is None:
                return
            # Checked after each chunk, because reading the next one may block. (Reading the clock costs
            # little compared with sending.)
            if clock() > deadline and (sink.has_next() or engine.dispatcher.has_outcomes()):
                return

    def _submit(self, chunk: list[Any]) -> None:
        """Send items that have just been read: as a chunk, as a group, or one by one."""
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
            # Send them one by one, to find out which of them cannot be sent.
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
        """Wait until there is at least one outcome in `_current`."""
        sink = self.sink
        if self._input is not None and (self.held < self._most // 2 or not sink.has_next()):
            self.read()
        while not sink.has_next():
            if sink.is_idle():
                # Ctrl-C may have lost an outcome that was about to be delivered. Count it as delivered.
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
        """Cancel what has not been delivered, and end the iteration."""
        self._input = None
        self._last_error = None
        self._progress.close()
        self.sink.close()
        self._current.clear()
        self._delivered = self.sink.sent_items

    def drop(self, _is_finalizing: Callable[[], bool] = sys.is_finalizing) -> None:
        """Cancel what has not been delivered, because nobody will ask for it. May be called again."""
        # Called by the garbage collector, in any thread, perhaps in the middle of a step of the progress bar
        # or of the pool: so this takes no lock. When the interpreter is being finalized, globals may be gone,
        # and the pool has ended.
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
