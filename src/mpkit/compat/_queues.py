"""The queues of `multiprocessing`, over `mpkit.BoundedQueue`."""

from __future__ import annotations

from multiprocessing import queues as stdlib
from types import GenericAlias
from typing import TYPE_CHECKING, Any, Generic

from mpkit._platform.hints import TypeVar, without_type_arguments
from mpkit.compat._errors import ClosedQueueError
from mpkit.compat._numbers import not_negative
from mpkit.errors import ClosedError
from mpkit.queue import BoundedQueue

if TYPE_CHECKING:
    from multiprocessing.context import BaseContext

# As there: without an annotation, `Queue()` is one of anything.
T = TypeVar("T", default=Any)

# Code that is given a queue may ask whether it is one of the standard library (`logging.config` in 3.13.0).
# Ours have no more of those than the kind; not even their `__init__` runs.
if TYPE_CHECKING:
    _StdlibQueue = stdlib.Queue[T]
    _StdlibJoinableQueue = stdlib.JoinableQueue[T]
    _StdlibSimpleQueue = stdlib.SimpleQueue[T]
else:
    # On 3.10 not all of them can be written with a parameter.
    _StdlibQueue, _StdlibJoinableQueue, _StdlibSimpleQueue = (
        GenericAlias(kind, T) for kind in (stdlib.Queue, stdlib.JoinableQueue, stdlib.SimpleQueue)
    )


class _Shell(Generic[T]):
    """What the queues have in common."""

    _queue: BoundedQueue[T]

    # As there, so that a subclass with more attributes can extend them.

    def __getstate__(self) -> Any:  # noqa: ANN401  opaque: it is handed to `__setstate__`
        return without_type_arguments(vars(self))

    def __setstate__(self, state: Any) -> None:  # noqa: ANN401
        vars(self).update(state)

    def empty(self) -> bool:
        """Whether the queue is empty: exact.

        Raises:
            OSError: this process has closed the queue.
        """
        try:
            return self._queue.empty()
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._queue!r}>"


class Queue(_Shell[T], _StdlibQueue[T]):
    """`multiprocessing.Queue`: a first-in first-out queue between processes.

    Objects are pickled in `put` itself, so an error is raised there, and there is no feeder thread: the
    standard library's warnings about joining a process that has put something do not apply. A handle can be
    pickled anywhere, not only while a process is started.

    Args:
        maxsize: the most items in the queue; 0 or less: bounded by memory only.
        ctx: accepted because subclasses of the standard library's class must pass it; not needed.
    """

    def __init__(self, maxsize: int = 0, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        self._queue = BoundedQueue(maxsize)

    def put(self, obj: T, block: bool = True, timeout: float | None = None) -> None:
        """Add an item at the end.

        Raises:
            queue.Full: there was no room, or not in time.
            ValueError: this process has closed the queue.
            pickle.PicklingError: the item cannot be pickled; the queue is unchanged.

        Blocking: until there is room, if `block`, for at most `timeout` seconds.
        """
        self._queue.put(obj, block, not_negative(timeout))

    def get(self, block: bool = True, timeout: float | None = None) -> T:
        """Take the oldest item.

        Raises:
            queue.Empty: there was no item, or not in time.
            ValueError: this process has closed the queue.

        Blocking: until there is an item, if `block`, for at most `timeout` seconds.
        """
        return self._queue.get(block, not_negative(timeout))

    def put_nowait(self, obj: T) -> None:
        """The same as ``put(obj, False)``."""
        self._queue.put(obj, False)

    def get_nowait(self) -> T:
        """The same as ``get(False)``."""
        return self._queue.get(False)

    def qsize(self) -> int:
        """How many items are in the queue: exact, and on macOS too."""
        return self._queue.qsize()

    def full(self) -> bool:
        """Whether the queue is full: exact."""
        return self._queue.full()

    def close(self) -> None:
        """Declare that this process will no longer use the queue. The items that it has put stay."""
        self._queue.close()

    def join_thread(self) -> None:
        """Nothing to do: there is no background thread.

        Raises:
            AssertionError: this process has not closed the queue.
        """
        if self._queue._state() != "closed":
            raise AssertionError(f"{self!r} is not closed")

    def cancel_join_thread(self) -> None:
        """Nothing to do: what was put is in the queue already, and stays."""


class JoinableQueue(Queue[T], _StdlibJoinableQueue[T]):
    """`multiprocessing.JoinableQueue`: a `Queue` with `task_done` and `join`."""

    def task_done(self) -> None:
        """Report that the work on one item that was taken is finished.

        Raises:
            ValueError: called more often than items were put.
        """
        self._queue.task_done()

    def join(self) -> None:
        """Wait until `task_done` has been called for every item that was put.

        Blocking: until then.
        """
        self._queue.join()


class SimpleQueue(_Shell[T], _StdlibSimpleQueue[T]):
    """`multiprocessing.SimpleQueue`: an unbounded queue that only has `get` and `put`.

    Args:
        ctx: as for `Queue`.
    """

    def __init__(self, *, ctx: BaseContext | None = None) -> None:  # noqa: ARG002
        self._queue = BoundedQueue()

    def get(self) -> T:
        """Take the oldest item.

        Raises:
            OSError: this process has closed the queue.

        Blocking: until there is one.
        """
        try:
            return self._queue.get()
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def put(self, obj: T) -> None:
        """Add an item at the end.

        Raises:
            OSError: this process has closed the queue.
            pickle.PicklingError: the item cannot be pickled; the queue is unchanged.
        """
        try:
            self._queue.put(obj)
        except ClosedError as error:
            raise ClosedQueueError(*error.args) from None

    def close(self) -> None:
        """Declare that this process will no longer use the queue."""
        self._queue.close()
