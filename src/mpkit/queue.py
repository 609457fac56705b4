"""`BoundedQueue`: a first-in first-out queue between processes, with the guarantees of `queue.Queue`.

This module checks arguments, and turns objects into records and back. For how records get from one process to
another, and why nothing is lost when a process is killed, see
``docs/explanation/queue-protocol.md`` and `mpkit._shm`.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from pickle import PickleBuffer
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

from mpkit._platform.hints import Self
from mpkit._platform.messages import shown
from mpkit._platform.threads.deadlines import check_timeout, deadline_of
from mpkit._shm.locks.handle import SharedHandle, checked_integer
from mpkit._shm.queues.get_side import GetSide, Record
from mpkit._shm.queues.held_items import BigRecord, HeldItem
from mpkit._shm.queues.open_queue import OpenQueue
from mpkit._shm.queues.packs import MOST_ITEMS, PackSlice, pack
from mpkit._shm.queues.put_side import PutSide, WrittenItem
from mpkit._shm.queues.records import BIG, weight_of
from mpkit._wire.codec import Encoder, decode, loads
from mpkit.errors import ClosedError, HandleLost, QueueEmpty, QueueFull, QueueShutDown, SharedMemoryExhausted

if TYPE_CHECKING:
    from mpkit._shm.queues.outside import QueueStatistics

__all__ = ["BoundedQueue", "QueueStatistics"]

T = TypeVar("T")

#: Pickles up to this size are put into the ring. Larger ones, and buffers of this size or more, get a region
#: of their own, in which the receiver uses them in place.
_INLINE_BYTES: Final = 32 * 1024
#: The size of what `full` counts as a small item.
_SMALL_ITEM_BYTES: Final = 32
#: The bounds that the layout of the shared file allows.
_MAXSIZE_LIMIT: Final = 1 << 36
_MAX_BYTES_LIMIT: Final = 1 << 63
#: More items than a call of `get_many` can ever take.
_ALL: Final = 1 << 30

_encode = Encoder(_INLINE_BYTES).encode
#: What `_encode` returns for an item: its pickle, and its big buffers.
_Encoded = tuple[bytes, list[PickleBuffer]]
#: Some of the items of a `put_many`: their number, and either all of them in one
#: pack, or each of them encoded.
_Chunk = tuple[int, bytes | None, list[_Encoded]]


class BoundedQueue(SharedHandle[OpenQueue], Generic[T]):
    """A first-in first-out queue between any number of processes and threads.

    It has the documented semantics of `queue.Queue`, between processes, on Linux and macOS:

    - all processes see one order; `qsize` and `empty` are exact, and so is `full` without `max_bytes`;
      `get_nowait` right after a `put` in any process finds the item;
    - `put` pickles in the caller: an error is raised there and leaves the queue unchanged, and later changes
      to the object do not travel;
    - once `put` has returned, the item survives the death of the process that put it. There is no feeder
      thread: nothing to flush, no deadlock when a process is joined;
    - any process that uses the queue may be killed at any instruction: the others carry on within half a
      second. At most, the items that a killed process was just taking are lost; nothing is
      duplicated, torn or reordered;
    - a handle can be pickled anywhere: as an argument of a process under every start method, as an argument
      of a task in a running pool, or inside an item of another queue.

    Large buffers that pickle protocol 5 can keep out of the pickle (those of numpy arrays, pandas columns,
    `pickle.PickleBuffer`) are written once into shared memory; the receiver owns them, and works on them in
    place. ``bytes`` and ``bytearray`` are copied once more.

    The queue exists as long as its creator, or any process that has opened it, is alive and has not closed
    it. Other processes can open it as long as its creator lives: so create it in the program and pass it on,
    and not in a task that returns it.

    Args:
        maxsize: The most items that the queue holds; 0 or less: bounded by memory only.
        max_bytes: The most bytes that the queued items may occupy together; None for no such bound. An item
            counts as the length of its pickle and buffers, rounded up to a multiple of 8, plus 8; an empty
            queue takes any item of at most `max_bytes`.

    If a handle arrives in a process that may not open or map more, every use of it there raises
    `SharedMemoryExhausted`. All methods and properties raise `ClosedError` after `close` in this process, and
    `HandleLost` as `put` does.

    Raises:
        TypeError: `maxsize` or `max_bytes` is not an integer.
        ValueError: `maxsize` is ``2**36`` or more, or `max_bytes` is less than 1 or is ``2**63`` or more.
        SharedMemoryExhausted: There is no room for the queue (about 80 KiB); nothing is left behind.
        OSError: This system has no named semaphores (Windows).

    Safe from: any process, any thread. Not from a signal handler or a ``__del__`` that interrupts an
    operation on the same queue, which gets a RuntimeError instead of waiting for itself.

    Examples:
        >>> from mpkit import BoundedQueue
        >>> with BoundedQueue(maxsize=2) as queue:
        ...     queue.put("spam")
        ...     queue.get()
        'spam'
    """

    __slots__ = ("_gets", "_is_full", "_puts", "_try_get", "_try_put")

    _shared_type = OpenQueue

    def __init__(self, maxsize: int = 0, *, max_bytes: int | None = None) -> None:
        items = max(checked_integer("maxsize", maxsize), 0)
        if items >= _MAXSIZE_LIMIT:
            raise ValueError(
                f"maxsize must be less than 2**36, not {shown(maxsize)}; 0 means bounded by memory only"
            )
        limit = 0
        if max_bytes is not None:
            limit = checked_integer("max_bytes", max_bytes)
            if limit < 1:
                raise ValueError(f"max_bytes must be at least 1, not {shown(max_bytes)}; None means no bound")
            if limit >= _MAX_BYTES_LIMIT:
                raise ValueError(
                    f"max_bytes must be less than 2**63, not {shown(max_bytes)}; None means no bound"
                )
        self._begin(OpenQueue.create(maxsize=items, max_bytes=limit))

    def _bind(self, shared: OpenQueue) -> None:
        super()._bind(shared)
        self._puts = shared.puts
        self._gets = shared.gets
        # With a bound on bytes there are no short cuts: each `put` must first check whether the item can ever
        # fit, even if the queue is full now.
        self._try_put: Callable[[bytes], bool] = _never_put if shared.max_bytes else shared.puts.try_put
        self._try_get: Callable[[], Record | None] = shared.gets.try_get
        has_short_cut = shared.maxsize and not shared.max_bytes
        self._is_full: Callable[[], bool] = shared.puts.ring.is_full if has_short_cut else _never_full

    def _bind_nothing(self, name: str, reason: HandleLost | SharedMemoryExhausted) -> None:
        super()._bind_nothing(name, reason)
        self._try_put = _never_put
        self._try_get = _never_get
        self._is_full = _never_full

    # -- one item --------------------------------------------------------------------------------------------

    def put(self, item: T, block: bool = True, timeout: float | None = None) -> None:
        """Add `item` at the end.

        Once this has returned, the item is in the queue, whatever happens to this process.

        Args:
            item: Any object that can be pickled; it is pickled before this returns.
            block: Wait while the queue is full.
            timeout: How many seconds the whole call may take; None: no limit. Ignored unless `block`.

        Raises:
            QueueFull: There was no room; with `block`, not within `timeout`.
            QueueShutDown: The queue has been shut down.
            ClosedError: This process has closed the queue.
            SerializationError: The item cannot be pickled; the queue is unchanged. (Without `block`,
                `QueueFull` may be raised instead if the queue is full.)
            ValueError: `timeout` is negative or NaN, if `block`; or the item alone is larger than
                `max_bytes`.
            TypeError: `timeout` is not a number, if `block`.
            SharedMemoryExhausted: There is no memory for the item; the queue is unchanged.
            HandleLost: The queue no longer existed when this handle arrived in this process: its creator, and
                every process that had opened it, had closed it or ended.

        Blocking: until there is room, if `block`. Otherwise for microseconds; for up to half a second if a
        process was killed in the middle of an operation on the queue; and for as long as a process stays
        stopped (SIGSTOP) in the middle of one, though calls with ``block=False`` or a `timeout` then give up
        after about a second, or at the timeout if that is later. Putting a big item takes as long as copying
        it. If the queue needs more memory for it, the system has to provide that first (about 0.2 s for a
        gigabyte), and other calls of `put` wait meanwhile.
        """
        deadline = None if timeout is None or not block else deadline_of(check_timeout(timeout))
        if not block and self._is_full():
            raise QueueFull("no room in the queue")
        head, buffers = _encode(item)
        if not buffers and len(head) <= _INLINE_BYTES:
            if self._try_put(head):
                return
            self._check_size(len(head))
            done = self._side_to_put().put(head, 0, block, deadline)
        else:
            done = self._put_big(head, [buffer.raw() for buffer in buffers], block, deadline)
        if not done:
            raise QueueFull(f"no room in the queue{_waited(block, timeout)}")

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item.

        Args:
            block: Wait while the queue is empty.
            timeout: How many seconds the whole call may take; None: no limit. Ignored unless `block`.

        Returns:
            The item; large buffers in it are in shared memory, belong to the receiver alone and are writable.

        Raises:
            QueueEmpty: There was no item; with `block`, not within `timeout`.
            QueueShutDown: The queue has been shut down and is empty.
            ClosedError: This process has closed the queue.
            SerializationError: The item cannot be unpickled in this process; it is lost.
            ValueError: `timeout` is negative or NaN, if `block`.
            TypeError: `timeout` is not a number, if `block`.
            HandleLost: The queue no longer existed when this handle arrived in this process: its creator, and
                every process that had opened it, had closed it or ended.

        Blocking: until there is an item, if `block`; see `put`.
        """
        deadline = None if timeout is None or not block else deadline_of(check_timeout(timeout))
        record = self._try_get()
        if record is not None:
            if type(record) is bytes:
                return loads(record)  # type: ignore[no-any-return]  # what was put
            return _item(record)  # type: ignore[no-any-return]
        found = self._side_to_get().get(block, deadline)
        if found is None:
            raise QueueEmpty(f"nothing in the queue{_waited(block, timeout)}")
        return _item(found)  # type: ignore[no-any-return]  # what was put

    def put_nowait(self, item: T) -> None:
        """``put(item, block=False)``: add `item` or raise `QueueFull` at once."""
        self.put(item, False)

    def get_nowait(self) -> T:
        """``get(block=False)``: take the oldest item or raise `QueueEmpty` at once."""
        return self.get(False)

    # -- many items ------------------------------------------------------------------------------------------

    def put_many(self, items: Iterable[T], block: bool = True, timeout: float | None = None) -> int:
        """Add many items in order, much faster than with a `put` for each.

        Everything is pickled first: if one item cannot be pickled, nothing goes in.

        Args:
            items: The items; the iterable is read to its end before anything goes in.
            block: Wait for room for all of them.
            timeout: How many seconds the whole call may take; None: no limit. Ignored unless `block`.

        Returns:
            How many of the items, from the first on, are in the queue now: all of them, unless `block` is
            false, the time ran out, or the queue was shut down or memory ran out half way.

        Raises:
            QueueShutDown: The queue has been shut down, and no item was added.
            ClosedError, SerializationError, ValueError, TypeError, SharedMemoryExhausted, HandleLost: As
                `put`, and no item was added.

        Blocking: as `put`. Items that other processes put meanwhile may come between these.
        """
        deadline = None if timeout is None or not block else deadline_of(check_timeout(timeout))
        everything = list(items)
        file = self._opened()
        chunks: list[_Chunk] = []
        for start in range(0, len(everything), MOST_ITEMS):
            chunk = everything[start : start + MOST_ITEMS]
            # A pack goes in as a whole. So there are none if each item counts against a bound on bytes, or if
            # there are more items than may ever be in the queue.
            fits = not file.max_bytes and (not file.maxsize or len(chunk) <= file.maxsize)
            packed = pack(chunk) if fits else None
            encoded = [] if packed is not None else [_encode(item) for item in chunk]
            chunks.append((len(chunk), packed, encoded))
        for _, _, encoded in chunks if file.max_bytes else ():
            for head, buffers in encoded:
                self._check_size(len(head) + sum(buffer.raw().nbytes for buffer in buffers))
        done = 0
        try:
            for went, tried in self._put_in_turn(chunks, block, deadline):
                done += went
                if went < tried:
                    break
        except (QueueShutDown, SharedMemoryExhausted, ClosedError):
            if not done:
                raise
        return done

    def get_many(
        self, max_items: int | None = None, block: bool = True, timeout: float | None = None
    ) -> list[T]:
        """Take the items that are there, in order, much faster than with a `get` for each.

        Args:
            max_items: The most items to take; None: all that are there.
            block: Wait while the queue is empty.
            timeout: How many seconds the whole call may take; None: no limit. Ignored unless `block`.

        Returns:
            At least one item.

        Raises:
            QueueEmpty: There was no item; with `block`, not within `timeout`.
            ValueError: `max_items` is less than 1; or `timeout` is negative or NaN, if `block`.
            TypeError: `max_items` is not an integer; or `timeout` is not a number, if `block`.
            QueueShutDown, ClosedError, HandleLost: As `get`.
            SerializationError: An item cannot be unpickled in this process. All items of this call are lost.

        Blocking: as `get`.
        """
        if max_items is None:
            limit = _ALL
        else:
            limit = checked_integer("max_items", max_items)
            if limit < 1:
                raise ValueError(
                    f"max_items must be at least 1, not {shown(max_items)}; None means all that are there"
                )
        deadline = None if timeout is None or not block else deadline_of(check_timeout(timeout))
        found = self._side_to_get().get_many(limit, block, deadline)
        if not found:
            raise QueueEmpty(f"nothing in the queue{_waited(block, timeout)}")
        items: list[T] = []
        for record in found:
            if isinstance(record, PackSlice):
                items += record.take()
            else:
                items.append(_item(record))
        return items

    # -- state -----------------------------------------------------------------------------------------------

    def qsize(self) -> int:
        """How many items are in the queue: exact at one moment during the call. Never blocks."""
        return self._opened().generations.size()

    def empty(self) -> bool:
        """Whether the queue is empty: exact at one moment during the call. Never blocks."""
        return self.qsize() == 0

    def full(self) -> bool:
        """Whether there is no room for a small item, because of `maxsize` or `max_bytes`. Never blocks.

        The number of items is exact at one moment during the call; that of bytes is added up while other
        processes may change it.
        """
        file = self._opened()
        if file.maxsize and self.qsize() >= file.maxsize:
            return True
        return (
            bool(file.max_bytes)
            and self._puts.ring.used_bytes() + _SMALL_ITEM_BYTES > file.max_bytes
            and self.qsize() > 0
        )

    @property
    def maxsize(self) -> int:
        """The most items that the queue holds; 0: bounded by memory only. Never blocks."""
        return self._opened().maxsize

    def statistics(self) -> QueueStatistics:
        """How many items and bytes are in the queue, and what has happened to it so far. Never blocks."""
        from mpkit._shm.queues.outside import numbers_of  # noqa: PLC0415  dataclasses load a dozen modules

        file = self._opened()
        return numbers_of(file.words, file.generations, file.regions)

    # -- the end ---------------------------------------------------------------------------------------------

    def shutdown(self, immediate: bool = False) -> None:
        """End the queue for all processes.

        From now on `put` raises `QueueShutDown`, and so does `get` once the queue is empty. All calls that
        are waiting, in any process, return or raise. Calling this again does no harm.

        Args:
            immediate: Discard the queued items; `join` no longer waits for them.

        Raises:
            ClosedError, HandleLost: As `put`.

        Blocking: for microseconds; for up to half a second if a process was killed in the middle of an
        operation on the queue; and for as long as a process stays stopped (SIGSTOP) in the middle of one.
        """
        puts, gets = self._side_to_put(), self._side_to_get()
        puts.shut_down()
        if immediate:
            gets.discard_all()
        gets.wake_putters()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[T]:
        """Take items until the queue is shut down and empty."""
        while True:
            try:
                item = self.get()
            except QueueShutDown:
                return
            yield item

    # -- finished work ---------------------------------------------------------------------------------------

    def task_done(self) -> None:
        """Report, for `join`, that one item that was taken has been dealt with.

        Raises:
            ValueError: It has been called as often as items have been put.
            ClosedError, HandleLost: As `put`.

        Blocking: as `shutdown`.
        """
        if not self._side_to_get().task_done(1):
            raise ValueError("task_done() called more often than items were put")

    def join(self, timeout: float | None = None) -> bool:
        """Wait until `task_done` has been called for every item that was put.

        Args:
            timeout: How many seconds to wait; None: no limit.

        Returns:
            Whether all items are done.

        Raises:
            ValueError: `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            ClosedError, HandleLost: As `put`.

        Blocking: until all items are done, `timeout` seconds at most; about a second more if a process is
        stopped (SIGSTOP) in the middle of an operation on the queue. An item that was lost with a killed
        process never counts as done: pass a timeout if that may happen.
        """
        return self._side_to_get().wait_until_done(deadline_of(check_timeout(timeout)))

    # -- asyncio ---------------------------------------------------------------------------------------------

    async def aput(self, item: T) -> None:
        """`put` for coroutines: waits for room without blocking the event loop.

        If it is cancelled while it waits, the item has not been put.

        Raises:
            QueueShutDown, ClosedError, SerializationError, ValueError, SharedMemoryExhausted, HandleLost:
                As `put`.
            RuntimeError: There is no room, and the system refuses the thread that is to wait; the item has
                not been put.

        Blocking: blocks the event loop while the item is pickled and copied; and for a second at each attempt
        while a process stays stopped (SIGSTOP) in the middle of an operation on the queue.
        """
        side = self._side_to_put()
        # Only once, and now: later changes to the object have no effect, even if there is no room for long.
        head, buffers = _encode(item)
        parts = [buffer.raw() for buffer in buffers]
        size = len(head) + sum(part.nbytes for part in parts)
        self._check_size(size)
        if parts or len(head) > _INLINE_BYTES:
            # None: the lock was not to be had. It is held for microseconds, unless a process was stopped just
            # then; meanwhile other coroutines go on.
            while (written := side.write_big(head, parts, False, None)) is None:
                await self._opened().async_waiters().moment()
        else:
            written = WrittenItem(head, 0, 0, None)
        weight = weight_of(size if written.flag == BIG else len(written.record))
        done = False
        try:
            while not done:
                # Read before trying, so that room that is made after the attempt is not missed.
                seen = side.progress()
                went = side.put_now(written.record, written.flag)
                if went is None:
                    await self._opened().async_waiters().moment()
                elif went:
                    done = True
                else:
                    await self._opened().async_waiters().room(seen, weight)
        finally:
            if not done and written.flag == BIG:
                side.drop_big(written)

    async def aget(self) -> T:
        """`get` for coroutines: waits for an item without blocking the event loop.

        If it is cancelled while it waits, no item has been taken.

        Raises:
            QueueShutDown, ClosedError, SerializationError, HandleLost: As `get`.
            RuntimeError: The queue is empty, and the system refuses the thread that is to wait.

        Blocking: blocks the event loop while the item is unpickled; otherwise as `aput`.
        """
        while True:
            try:
                return self.get(False)
            except QueueEmpty:
                await self._opened().async_waiters().item()

    async def __aiter__(self) -> AsyncIterator[T]:
        """Take items until the queue is shut down and empty."""
        while True:
            try:
                item = await self.aget()
            except QueueShutDown:
                return
            yield item

    def __repr__(self) -> str:
        name = f"<{type(self).__name__}"
        if self._state():
            return f"{name} {self._state()}>"
        file = self._opened()
        bounds = f" of {file.maxsize}" if file.maxsize else ""
        bounds += f", max_bytes={file.max_bytes}" if file.max_bytes else ""
        return f"{name} {self.qsize()}{bounds} items{', shut down' if self._puts.ring.is_shut_down else ''}>"

    # -- inside ----------------------------------------------------------------------------------------------

    def _put_in_turn(
        self, chunks: list[_Chunk], block: bool, deadline: float | None
    ) -> Iterator[tuple[int, int]]:
        """Put packs, runs of small items, and single big items.

        Yields:
            For each of them how many items were put, and how many it has.
        """
        side = self._side_to_put()
        for number, packed, encoded in chunks:
            if packed is not None:
                went = side.put_pack(packed, number, block, deadline)
                if went is not False:
                    yield (number if went else 0), number
                    continue
                # There is no room for all of them at once, so they wait for room one by one. They are encoded
                # from the pack, because the objects may have changed since.
                encoded += [_encode(item) for item in loads(packed)]
            start = 0
            while start < len(encoded):
                end = start
                while end < len(encoded) and not encoded[end][1] and len(encoded[end][0]) <= _INLINE_BYTES:
                    end += 1
                if end > start:
                    heads = [head for head, _ in encoded[start:end]]
                    yield side.put_many(heads, block, deadline), len(heads)
                else:
                    head, buffers = encoded[start]
                    end = start + 1
                    yield self._put_big(head, [buffer.raw() for buffer in buffers], block, deadline), 1
                start = end

    def _put_big(self, head: bytes, parts: list[memoryview], block: bool, deadline: float | None) -> bool:
        self._check_size(len(head) + sum(part.nbytes for part in parts))
        side = self._side_to_put()
        item = side.write_big(head, parts, block, deadline, if_room=not block)
        if item is None:
            return False
        done = False
        try:
            done = side.put(item.record, item.flag, block, deadline)
        finally:
            if not done and item.flag == BIG:
                side.drop_big(item)
        return done

    def _check_size(self, size: int) -> None:
        file = self._opened()
        if file.max_bytes and size > file.max_bytes:
            raise ValueError(f"the item takes {size} bytes and can never fit: max_bytes is {file.max_bytes}")

    def _side_to_put(self) -> PutSide:
        self._opened()
        return self._puts

    def _side_to_get(self) -> GetSide:
        self._opened()
        return self._gets


def _item(record: Record) -> Any:  # noqa: ANN401  what was put
    """The object in a record that has been taken out of the queue."""
    if isinstance(record, PackSlice):
        return record.take()[0]
    if isinstance(record, HeldItem):
        record = record.open()
    if isinstance(record, BigRecord):
        item = decode(record.head, record.buffers)
        # If a signal has come while C code was unpickling, have its handler called here, while `record` keeps
        # the views alive. Otherwise it might be called in the callback of the last view,
        # where its exception is lost.
        _let_signals_come()
        return item
    return loads(record)


def _let_signals_come() -> None:
    """Do nothing: calling any Python function makes the interpreter call the handlers of pending signals."""


def _never_put(_data: bytes) -> bool:
    return False


def _never_get() -> None:
    return None


def _never_full() -> bool:
    return False


def _waited(block: bool, timeout: float | None) -> str:
    return f" within {timeout} s" if block and timeout is not None and not math.isinf(timeout) else ""


def __getattr__(name: str) -> object:
    if name != "QueueStatistics":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mpkit._shm.queues.outside import QueueStatistics  # noqa: PLC0415  see `BoundedQueue.statistics`

    globals()[name] = QueueStatistics
    return QueueStatistics
