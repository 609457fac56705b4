"""`mpkit.BoundedQueue` with the interfaces of the queues of `multiprocessing`.

The classes here are subclasses of those of the standard library, because code that is given a queue may check
its class (`logging.config` does in 3.13.0). They inherit nothing else: not even ``__init__`` of the base
classes is called.
"""

from __future__ import annotations

from multiprocessing import queues as stdlib
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic

from mpkit._platform.hints import TypeVar, without_type_arguments
from mpkit._platform.threads.deadlines import not_negative
from mpkit.compat._errors import ClosedQueueError
from mpkit.errors import ClosedError
from mpkit.queue import BoundedQueue

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# With a default, as in typeshed: so `Queue()` needs no annotation.
T = TypeVar("T", default=Any)

if TYPE_CHECKING:
    _StdlibQueue = stdlib.Queue[T]
    _StdlibJoinableQueue = stdlib.JoinableQueue[T]
    _StdlibSimpleQueue = stdlib.SimpleQueue[T]
else:
    # On 3.10, not all of them are generic at run time.
    _StdlibQueue, _StdlibJoinableQueue, _StdlibSimpleQueue = (
        GenericAlias(kind, T) for kind in (stdlib.Queue, stdlib.JoinableQueue, stdlib.SimpleQueue)
    )


class _Shell(Generic[T]):
    """What the queues have in common."""

    _queue: BoundedQueue[T]

    # As in the standard library, so that a subclass with more attributes can extend these.

    def __getstate__(self) -> Any:  # noqa: ANN401  opaque: it is handed to `__setstate__`
        return without_type_arguments(vars(self))

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        vars(self).update(state)

    def empty(self) -> bool:
        """Whether the queue is empty: exact at one moment during the call. Never blocks.

        Raises:
            OSError: This process has closed the queue.
        """
        try:
            return self._queue.empty()
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._queue!r}>"


class Queue(_Shell[T], _StdlibQueue[T]):
    """As `multiprocessing.Queue`: a first-in first-out queue between processes.

    `put` itself pickles the item, and raises pickling errors. There is no feeder thread: what the standard
    library warns of when a process is joined that has put something does not apply. A handle can be pickled
    anywhere, not only while a process is started.

    Args:
        maxsize: The most items in the queue; 0 or less: bounded by memory only.
        ctx: Ignored; subclasses of the standard library's class must pass it.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        self._queue = BoundedQueue(maxsize)

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end.

        Raises:
            queue.Full: There was no room; with `block`, not within `timeout`.
            ValueError: This process has closed the queue.
            pickle.PicklingError: The item cannot be pickled; the queue is unchanged.

        Blocking: until there is room, if `block`, `timeout` seconds at most; a negative number counts as 0.
        """
        self._queue.put(obj, block, not_negative(timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item.

        Raises:
            queue.Empty: There was no item; with `block`, not within `timeout`.
            ValueError: This process has closed the queue.

        Blocking: until there is an item, if `block`, `timeout` seconds at most; a
        negative number counts as 0.
        """
        return self._queue.get(block, not_negative(timeout))

    def put_nowait(self, obj: T) -> None:
        """The same as ``put(obj, False)``."""
        self._queue.put(obj, False)

    def get_nowait(self) -> T:
        """The same as ``get(False)``."""
        return self._queue.get(False)

    def qsize(self) -> int:
        """How many items are in the queue: exact at one moment during the call. Never blocks."""
        return self._queue.qsize()

    def full(self) -> bool:
        """Whether the queue is full: exact at one moment during the call. Never blocks."""
        return self._queue.full()

    def close(self) -> None:
        """Close the queue in this process: it can no longer be used here. The items that it has put stay."""
        self._queue.close()

    def join_thread(self) -> None:
        """Do nothing: there is no feeder thread.

        Raises:
            AssertionError: This process has not closed the queue.
        """
        if self._queue._state() != "closed":
            raise AssertionError(f"{self!r} is not closed")

    def cancel_join_thread(self) -> None:
        """Do nothing: what was put is in the queue already, and stays."""


class JoinableQueue(Queue[T], _StdlibJoinableQueue[T]):
    """As `multiprocessing.JoinableQueue`: a `Queue` with `task_done` and `join`."""

    def task_done(self) -> None:
        """Report, for `join`, that one item that was taken has been dealt with.

        Raises:
            ValueError: It has been called as often as items have been put.
        """
        self._queue.task_done()

    def join(self) -> None:
        """Wait until `task_done` has been called for every item that was put.

        Blocking: until then. An item that was lost with a killed process never counts as done.
        """
        self._queue.join()


class SimpleQueue(_Shell[T], _StdlibSimpleQueue[T]):
    """As `multiprocessing.SimpleQueue`: a queue without a bound, which has little more than `get` and `put`.

    Args:
        ctx: As for `Queue`.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        self._queue = BoundedQueue()

    def get(self) -> T:
        """Take the oldest item.

        Raises:
            OSError: This process has closed the queue.

        Blocking: until there is an item.
        """
        try:
            return self._queue.get()
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def put(self, obj: T) -> None:
        """Add an item at the end.

        Raises:
            OSError: This process has closed the queue.
            pickle.PicklingError: The item cannot be pickled; the queue is unchanged.
        """
        try:
            self._queue.put(obj)
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def close(self) -> None:
        """Close the queue in this process: it can no longer be used here."""
        self._queue.close()
