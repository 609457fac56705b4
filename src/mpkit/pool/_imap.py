"""The iterator that a lazy map returns (`imap`, `imap_unordered`)."""

from __future__ import annotations

from types import TracebackType
from typing import Generic, TypeVar

from mpkit._platform.hints import Self
from mpkit._wire.unsendable import Unsendable
from mpkit.pool._lazy_map import LazyMap

R = TypeVar("R")


class ImapIterator(Unsendable, Generic[R]):
    """What `imap` and `imap_unordered` return: an iterator over the results that reads its input as it goes.

    The input is read at most `buffersize` items ahead of the results that have been taken, in the thread that
    asks for results. So the iterable may be infinite, slow, or bound to a thread; if it blocks, results that
    are ready are delayed by at most one item (with a `chunksize`, by one chunk).

    If an item fails, or cannot be pickled, `next` raises its error; the iteration can go on after that. If
    the pool accepts no more tasks, because it was closed or is broken, the results of all items that have
    been sent come first, and then that error. Dropping or closing the iterator, or the end of its `with`
    block, cancels what it has not delivered.

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
            # The traceback must not keep the iterator alive: a notebook stores it after its stop button.
            del self
            raise

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Args:
            timeout: Seconds to wait for it; None: no limit. Reading the input and
                unpickling are not included.

        Raises:
            StopIteration: There are no more results.
            WaitTimeout: The time ran out; you may ask again.
            ValueError: `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            SerializationError: This item, or its result, cannot be pickled.
            ClosedError: This process is a fork of the pool's.
            RuntimeError: This item's call raised StopIteration (the cause of this error if `chunksize` is 1).
                Or the result is not there, and this is a signal handler or a ``__del__`` that interrupts this
                thread's own work with the pool: it would wait for itself.
            Exception: What this item's call raised; or, after all results, what the input raised, or why the
                pool accepted no more tasks.

        Blocking: until the next result is there, `timeout` seconds at most; and while the input is read.
        """
        try:
            return self._lazy.next(timeout)
        except BaseException:
            del self  # as in `__next__`
            raise

    def read_all(self) -> None:
        """Read and send the rest of the input now, ignoring `buffersize`.

        Useful if you close the pool before you have taken the results.

        Blocking: while the input is read; forever if it is infinite.
        """
        self._lazy.read_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Cancel everything that has not been delivered, and end the iteration. Does not wait for tasks."""
        self._lazy.close()

    def __del__(self) -> None:
        # Dropping the iterator need not drop the map: the traceback of an interrupt may refer to its frames.
        lazy: LazyMap[R] | None = getattr(self, "_lazy", None)
        if lazy is not None:
            lazy.drop()

    def __repr__(self) -> str:
        lazy = self._lazy
        order = "ordered" if lazy.sink.ordered else "unordered"
        state = "all read" if lazy.is_all_read else "reading"
        return f"<ImapIterator of {lazy.function.name}, {order}, {state}, {lazy.held} items under way>"
