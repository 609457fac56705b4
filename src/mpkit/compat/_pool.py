"""`Pool` as `multiprocessing` has it, over `mpkit.TaskPool`."""

from __future__ import annotations

import contextlib
import sys
from concurrent.futures import Future
from multiprocessing import pool as stdlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar, cast

from mpkit._platform.hints import Self
from mpkit.compat._numbers import not_negative
from mpkit.compat._processes import default_start_method
from mpkit.errors import SerializationError
from mpkit.pool import TaskPool

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable, Mapping

    from mpkit.pool._maps import ImapIterator

R = TypeVar("R")
T = TypeVar("T")

_NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})


class AsyncResult(Generic[R]):
    """What the ``_async`` methods of a pool return: `multiprocessing.pool.AsyncResult`."""

    def __init__(self, handle: Future[R]) -> None:
        self._handle = handle

    def get(self, timeout: float | None = None) -> R:
        """The result, or the error, of the call.

        Raises:
            multiprocessing.TimeoutError: the time is over; it can be asked for again.
            multiprocessing.pool.MaybeEncodingError: the result could not be pickled.
            Exception: what the call raised.

        Blocking: until it is there, for at most `timeout` seconds.
        """
        with _stdlib_errors():
            return self._handle.result(not_negative(timeout))

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, for at most `timeout` seconds."""
        with contextlib.suppress(Exception):
            self._handle.exception(not_negative(timeout))

    def ready(self) -> bool:
        """Whether the call has ended."""
        return self._handle.done()

    def successful(self) -> bool:
        """Whether the call has ended without an exception.

        Raises:
            ValueError: it has not ended yet.
        """
        if not self._handle.done():
            raise ValueError(f"{self!r} not ready")
        return not self._handle.cancelled() and self._handle.exception() is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._handle!r}>"


class IMapIterator(Generic[R]):
    """What `imap` and `imap_unordered` return: `multiprocessing.pool.IMapIterator`."""

    def __init__(self, results: ImapIterator[R], forget: Callable[[ImapIterator[R]], None]) -> None:
        self._results = results
        self._forget = forget

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> R:
        return self.next()

    def next(self, timeout: float | None = None) -> R:
        """The next result.

        Raises:
            StopIteration: there are no more.
            multiprocessing.TimeoutError: the time is over; it can be asked for again.
            multiprocessing.pool.MaybeEncodingError: the result could not be pickled.
            Exception: what the call raised.

        Blocking: until it is there, for at most `timeout` seconds.
        """
        try:
            with _stdlib_errors():
                return self._results.next(not_negative(timeout))
        except StopIteration:
            self._forget(self._results)
            raise


class Pool:
    """`multiprocessing.Pool`: workers that call functions. Leaving a ``with`` block terminates it.

    A worker that dies fails the task that it ran, with `mpkit.errors.WorkerCrashed`, instead of hanging
    the pool. Its workers may have children of their own. `imap` reads its input as results are taken, and
    the rest of it in `close`.

    Args:
        processes: how many workers. None: as many as this process may use CPUs.
        initializer: called in each worker when it starts.
        initargs: its arguments.
        maxtasksperchild: after how many tasks a worker is replaced. None: never.
    """

    #: None: what the program has set, else the default of the running Python.
    _start_method: ClassVar[str | None] = None

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> None:
        method = self._start_method or default_start_method()
        self._pool = TaskPool(processes, initializer, initargs, maxtasksperchild, method)
        # The standard library runs what was given to imap to its end even if nobody takes the results.
        self._iterators: set[ImapIterator[Any]] = set()

    # -- one call
    # ------------------------------------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] = _NO_KEYWORDS
    ) -> R:
        """Call ``func(*args, **kwds)`` in a worker and wait for its result."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_KEYWORDS,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[R]:
        """Have a worker call ``func(*args, **kwds)``; the callbacks are called in a thread of the pool."""
        on_error = _with_stdlib_error(error_callback)
        return _submitted(
            lambda: self._pool.apply_async(func, args, dict(kwds), callback, on_error), error_callback
        )

    # -- many calls
    # ----------------------------------------------------------------------------------------------------

    def map(self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int | None = None) -> list[R]:
        """Call `func` for each item and wait for the list of results."""
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[R]]:
        """Have workers call `func` for each item."""
        on_error = _with_stdlib_error(error_callback)
        return _submitted(
            lambda: self._pool.map_async(func, iterable, chunksize, callback, on_error), error_callback
        )

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """The same as `map`, each item being the arguments of one call."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[list[R]]:
        """The same as `map_async`, each item being the arguments of one call."""
        on_error = _with_stdlib_error(error_callback)
        return _submitted(
            lambda: self._pool.starmap_async(func, iterable, chunksize, callback, on_error), error_callback
        )

    def imap(self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int = 1) -> IMapIterator[R]:
        """Have workers call `func` for each item; an iterator over the results, in the order of the input."""
        return self._iterator(self._pool.imap(func, iterable, chunksize))

    def imap_unordered(
        self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int = 1
    ) -> IMapIterator[R]:
        """The same as `imap`, with the results in the order in which they arrive."""
        return self._iterator(self._pool.imap_unordered(func, iterable, chunksize))

    def _iterator(self, results: ImapIterator[R]) -> IMapIterator[R]:
        self._iterators.add(results)
        return IMapIterator(results, self._iterators.discard)

    # -- the end
    # -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Take no more tasks; those there are go on. The rest of what was given to `imap` is read now."""
        for results in list(self._iterators):
            results.read_all()
        self._pool.close()

    def terminate(self) -> None:
        """End at once, without finishing what there is to do."""
        self._iterators.clear()
        self._pool.terminate()
        # RuntimeError: called from a callback, in the pool's own thread, which cannot wait for itself.
        with contextlib.suppress(RuntimeError):
            self._pool.join()

    def join(self) -> None:
        """Wait for the workers of a closed or terminated pool.

        Raises:
            ValueError: the pool is still open.

        Blocking: until they are gone.
        """
        self._pool.join()

    def __enter__(self) -> Self:
        self._pool.__enter__()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._pool!r}>"


class SpawnPool(Pool):
    """A `Pool` whose workers start in fresh interpreters."""

    _start_method: ClassVar[str | None] = "spawn"


if sys.platform != "win32":

    class ForkPool(Pool):
        """A `Pool` whose workers are forked."""

        _start_method: ClassVar[str | None] = "fork"

    class ForkServerPool(Pool):
        """A `Pool` whose workers are forked by the fork server."""

        _start_method: ClassVar[str | None] = "forkserver"


# -- errors as the standard library raises them
# ------------------------------------------------------------------------


@contextlib.contextmanager
def _stdlib_errors() -> Generator[None]:
    try:
        yield
    except SerializationError as error:
        raise _stdlib_error(error) from error


def _stdlib_error(error: BaseException) -> BaseException:
    """What `multiprocessing.Pool` raises where mpkit has raised `error`."""
    if isinstance(error, SerializationError):
        # typeshed does not know it.
        kind = cast("type[Exception]", vars(stdlib)["MaybeEncodingError"])
        return kind(error.__cause__ or error, "<what could not be pickled>")
    return error


def _with_stdlib_error(
    callback: Callable[[BaseException], object] | None,
) -> Callable[[BaseException], object] | None:
    return None if callback is None else lambda error: callback(_stdlib_error(error))


def _submitted(
    submit: Callable[[], Future[R]], error_callback: Callable[[BaseException], object] | None
) -> AsyncResult[R]:
    """The result of a call that has been submitted, or that could not be: its arguments cannot be pickled."""
    try:
        return AsyncResult(submit())
    except SerializationError as error:
        # The standard library finds out in a thread of the pool: the original error comes out of get().
        original = error.__cause__ or error
        failed: Future[R] = Future()
        failed.set_exception(original)
        if error_callback is not None:
            error_callback(original)
        return AsyncResult(failed)
