"""`Pool`: `mpkit.TaskPool` with the interface of `multiprocessing.Pool`.

The classes here are subclasses of those of the standard library, because a library that is given a pool, a
result or an iterator may check its class (dask does). They inherit nothing else: not even ``__init__`` of the
base classes is called.
"""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from abc import ABCMeta
from collections.abc import Sized
from concurrent.futures import Future
from multiprocessing import pool as stdlib
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar

from mpkit._platform.hints import Self, override
from mpkit._platform.messages import shown
from mpkit._platform.threads.deadlines import check_timeout, deadline_of, not_negative, remaining
from mpkit.compat._errors import original_error, pool_error, pool_errors
from mpkit.compat._iterators import IMapIterator
from mpkit.compat._numbers import not_bool
from mpkit.compat._processes import default_start_method, processes_of, worker_names
from mpkit.errors import SerializationError, WaitTimeout
from mpkit.pool import TaskHandle, TaskPool
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._engine.states import CLOSED, RUNNING
from mpkit.pool._facade import check_callbacks
from mpkit.pool._maps import MapHandle
from mpkit.pool._shared_results import SharedResults

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess

    from mpkit.pool._imap import ImapIterator

R = TypeVar("R")
T = TypeVar("T")
A = TypeVar("A", bound="AsyncResult[Any]")

_NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})
#: With fewer iterators than this, a pool does not check whether any of them have finished.
_FEW_ITERATORS = 16
#: The states of a pool under the names of the standard library. All others are `TERMINATE` there.
_STATES = {RUNNING: stdlib.RUN, CLOSED: stdlib.CLOSE}


class AsyncResult(stdlib.ApplyResult[R]):
    """What the ``_async`` methods of a pool return: as `multiprocessing.pool.AsyncResult`.

    It is ready when the call has ended and its callback has returned.
    """

    def __init__(
        self,
        handle: TaskHandle[R] | Future[R],
        pool: Pool | None = None,
        callbacks: _Callbacks[R] | None = None,
    ) -> None:
        self._handle = handle
        #: A result that is not ready keeps its pool alive.
        self._pool = pool
        self._callbacks = callbacks

    def get(self, timeout: float | None = None) -> R:
        """The result, or the error, of the call.

        Raises:
            multiprocessing.TimeoutError: The time ran out; you may ask again.
            multiprocessing.pool.MaybeEncodingError: The result could not be pickled.
            ValueError, RuntimeError: As `wait`.
            Exception: What the call raised.

        Blocking: until the call has ended, `timeout` seconds at most; a negative number counts as 0.
        """
        self.wait(timeout)
        if not self.ready():
            raise WaitTimeout(f"{self!r} was not ready in time; get() can be called again")
        with pool_errors():
            return self._handle.result()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, `timeout` seconds at most. Unpickles nothing.

        Raises:
            ValueError: This process is a fork of the pool's (`mpkit.errors.ClosedError`).
            RuntimeError: Called by a signal handler in the middle of this thread's work with the pool.
        """
        deadline = deadline_of(check_timeout(not_negative(timeout)))
        # Any other future has ended already: it says that the arguments could not be pickled.
        if isinstance(self._handle, TaskHandle):
            self._handle.wait(remaining(deadline))
        if self._callbacks is not None and self._handle.done():
            self._callbacks.wait(remaining(deadline))

    def ready(self) -> bool:
        """Whether the call has ended."""
        ready = self._handle.done() and (self._callbacks is None or self._callbacks.wait(0))
        if ready:
            self._pool = None
        return ready

    def successful(self) -> bool:
        """Whether the call has ended without an exception.

        Raises:
            ValueError: It has not ended yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self._handle.cancelled() and self._handle.exception() is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._handle!r}>"


class MapResult(AsyncResult[list[R]], stdlib.MapResult[R]):
    """What the ``_async`` maps of a pool return: as `multiprocessing.pool.MapResult`."""

    @property
    def _number_left(self) -> int:
        # Private in the standard library, but programs use it to show the progress of a map.
        handle: Future[Any] = self._handle
        return len(handle._sink.tasks) if isinstance(handle, MapHandle) and not handle.done() else 0


class _Callbacks(Generic[R]):
    """The two callbacks of one result. They keep the pool alive until one of them has been called.

    Safe from: any thread.
    """

    def __init__(
        self,
        pool: Pool,
        callback: Callable[[R], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> None:
        check_callbacks(callback, error_callback)
        self._pool: Pool | None = pool
        self._callback = callback
        self._error_callback = error_callback
        self._called = threading.Event()
        self._pid = os.getpid()

    def succeeded(self, result: R) -> None:
        """Call the callback for a call that has returned."""
        self._call(self._callback, result)

    def failed(self, error: BaseException) -> None:
        """Call the callback for a call that has raised an exception."""
        self._call(self._error_callback, pool_error(error))

    def wait(self, timeout: float | None) -> bool:
        """Wait until one of them has returned, `timeout` seconds at most; False if none has.

        Returns True at once in a callback: all callbacks are called in one thread, which would wait for
        itself. And in a fork, in which that thread does not exist.
        """
        return (
            self._called.is_set()
            or _this_thread.is_in_callback
            or self._pid != os.getpid()
            or self._called.wait(timeout)
        )

    def _call(self, callback: Callable[[Any], object] | None, argument: object) -> None:
        outer = _this_thread.is_in_callback
        _this_thread.is_in_callback = True
        try:
            if callback is not None:
                callback(argument)
        finally:
            _this_thread.is_in_callback = outer
            self._called.set()
            self._pool = None


class _ThisThread(threading.local):
    is_in_callback = False


_this_thread = _ThisThread()


class _TaskQueue:
    """What programs use of the private task queue of a pool: they submit no more tasks while it is long."""

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        """How many tasks have not begun; a chunk of a map counts as one task."""
        return self._pool.statistics().queued

    def empty(self) -> bool:
        """Whether there are none."""
        return not self.qsize()


class Pool(stdlib.Pool, metaclass=ABCMeta):
    """As `multiprocessing.Pool`: workers that call functions. Leaving a ``with`` block terminates it.

    A worker that dies fails the task that it ran, with `mpkit.errors.WorkerCrashed`, instead of hanging the
    pool. Workers may have children of their own. `imap` reads its input as results are taken; `close` reads
    the rest of it. Log records of workers are not forwarded, as in the standard
    library; `mpkit.TaskPool` does that.

    Args:
        processes: How many workers. None: one for each CPU that this process may use.
        initializer: Called in each worker when it starts.
        initargs: Its arguments.
        maxtasksperchild: After how many tasks a worker is replaced. None: never.
        context: How workers are started, from `multiprocessing.get_context` or `mpkit.compat.get_context`.
            None: what the program has set, else the default of the running Python.

    Raises:
        ValueError: A number is too small, or `maxtasksperchild` is not an integer.
        TypeError, AttributeError: Another argument has the wrong type.
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: BaseContext | None = None,
    ) -> None:
        if maxtasksperchild is not None and not isinstance(maxtasksperchild, int):
            raise ValueError(
                f"maxtasksperchild must be a positive int or None; got {shown(maxtasksperchild)}"
            )
        # As in the standard library, a string instead of a context raises an AttributeError.
        method = default_start_method() if context is None else context.get_start_method()
        # Programs for the standard library set up the logging of their workers themselves.
        options = PoolOptions(
            not_bool(processes), initializer, initargs, not_bool(maxtasksperchild), method, forward_logs=False
        )
        options.worker_names = worker_names(method, "PoolWorker")
        self._task_pool = TaskPool._of(options)
        # Kept because, as in the standard library, everything that was given to `imap` is called even if the
        # iterator is dropped.
        self._iterators: set[SharedResults[Any]] = set()
        #: When there are so many, those that have finished are removed.
        self._most_iterators = _FEW_ITERATORS

    # The following names are private in the standard library. Programs use them nevertheless, to find the
    # worker processes and to see how much is left to do.

    @property
    def _pool(self) -> list[BaseProcess]:
        return processes_of(self._task_pool)

    @property
    def _cache(self) -> dict[int, str]:
        # A dictionary of results in the standard library. Programs only use its length.
        return self._task_pool._engine.insight.unfinished()

    @property
    def _processes(self) -> int:
        return self._task_pool._engine.options.processes

    @property
    def _state(self) -> str:
        return _STATES.get(self._task_pool._engine.status.state, stdlib.TERMINATE)

    @property
    def _taskqueue(self) -> _TaskQueue:
        return _TaskQueue(self._task_pool)

    # -- one call --------------------------------------------------------------------------------------------

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] = _NO_KEYWORDS
    ) -> R:
        """Call ``func(*args, **kwds)`` in a worker and wait for its result. Errors as `AsyncResult.get`."""
        return self.apply_async(func, args, kwds).get()

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] = _NO_KEYWORDS,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> AsyncResult[R]:
        """Have a worker call ``func(*args, **kwds)``. Never blocks.

        The callbacks are called with the result or the error, in the one thread
        that the pool has for callbacks.

        Raises:
            ValueError: The pool is closed.
            TypeError: `func` or a callback is not callable.
        """
        return self._submitted(
            AsyncResult,
            lambda *hooks: self._task_pool.apply_async(func, args, dict(kwds), *hooks),
            callback,
            error_callback,
        )

    # -- many calls ------------------------------------------------------------------------------------------

    def map(self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int | None = None) -> list[R]:
        """Call `func` for each item and wait for the list of results. Errors as `AsyncResult.get`."""
        return self.map_async(func, iterable, chunksize).get()

    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """Have workers call `func` for each item; the result is the list of results.

        Callbacks and errors are as for `apply_async`; the callbacks get the whole list.
        """
        return self._mapped(self._task_pool.map_async, func, iterable, chunksize, callback, error_callback)

    def starmap(
        self, func: Callable[..., R], iterable: Iterable[Iterable[Any]], chunksize: int | None = None
    ) -> list[R]:
        """The same as `map`, but each item holds the arguments of one call."""
        return self.starmap_async(func, iterable, chunksize).get()

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> MapResult[R]:
        """The same as `map_async`, but each item holds the arguments of one call."""
        return self._mapped(
            self._task_pool.starmap_async, func, iterable, chunksize, callback, error_callback
        )

    # typeshed allows a `chunksize` of None, but it is an error in the standard library as well.

    def imap(  # type: ignore[override]
        self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int = 1
    ) -> IMapIterator[R]:
        """Have workers call `func` for each item; returns an iterator over the results, in input order."""
        return self._iterator(lambda: self._task_pool.imap(func, iterable, chunksize))

    def imap_unordered(  # type: ignore[override]
        self, func: Callable[[T], R], iterable: Iterable[T], chunksize: int = 1
    ) -> IMapIterator[R]:
        """The same as `imap`, with the results in the order in which they arrive."""
        return self._iterator(lambda: self._task_pool.imap_unordered(func, iterable, chunksize))

    def _iterator(self, start: Callable[[], ImapIterator[R]]) -> IMapIterator[R]:
        with pool_errors():
            results = SharedResults(start())
        if len(self._iterators) >= self._most_iterators:
            self._forget_finished()
        self._iterators.add(results)
        return IMapIterator(results, self._forget)

    def _forget(self, results: SharedResults[Any]) -> None:
        """Drop an iterator whose results have all been taken."""
        self._iterators.discard(results)

    def _forget_finished(self) -> None:
        """Drop the iterators that have read all of their input, and whose calls have ended."""
        self._task_pool._engine.collector.look()
        finished = [results for results in list(self._iterators) if not results.is_under_way()]
        self._iterators.difference_update(finished)
        # Not checked again for each further iterator: many of them may be unfinished.
        self._most_iterators = _FEW_ITERATORS + 2 * len(self._iterators)

    def _mapped(
        self,
        verb: Callable[..., TaskHandle[list[R]]],
        func: Callable[..., R],
        iterable: Iterable[Any],
        chunksize: int | None,
        callback: Callable[[list[R]], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> MapResult[R]:
        """Submit a map with `verb`, a method of the pool; returns its result."""
        items = iterable if isinstance(iterable, Sized) else list(iterable)
        if not len(items):
            # As in the standard library, callbacks are not called for an empty input.
            callback = error_callback = None
        return self._submitted(
            MapResult, lambda *hooks: verb(func, items, chunksize, *hooks), callback, error_callback
        )

    def _submitted(
        self,
        kind: Callable[..., A],
        submit: Callable[..., Future[Any]],
        callback: Callable[[Any], object] | None,
        error_callback: Callable[[BaseException], object] | None,
    ) -> A:
        """Submit calls, and return their result. If the arguments cannot be pickled, it is that error.

        Args:
            kind: The class of the result.
            submit: Submits the calls. Its arguments are two functions, to be called
                with the result and the error.
            callback: As the user has passed it.
            error_callback: As the user has passed it.
        """
        callbacks = None
        if callback is not None or error_callback is not None:
            callbacks = _Callbacks(self, callback, error_callback)
        try:
            if callbacks is None:
                return kind(submit(None, None), self)
            return kind(submit(callbacks.succeeded, callbacks.failed), self, callbacks)
        except SerializationError as error:
            # The standard library pickles in a thread of the pool, so `get` raises the original error.
            original = original_error(error)
        failed: Future[Any] = Future()
        failed.set_exception(original)
        if callbacks is not None:
            # Called in the caller's thread, as a done callback: so an exception of it
            # is logged, as for other calls.
            tell = functools.partial(failed.add_done_callback, lambda _: callbacks.failed(original))
            self._task_pool._engine.collector.call_back(tell)
        return kind(failed, None, callbacks)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more tasks; those submitted go on.

        Blocking: while the rest of the input of `imap` is read, if there is any.
        """
        for results in list(self._iterators):
            results.read_all()
        self._task_pool.close()

    def terminate(self) -> None:
        """End the pool at once, without finishing its tasks.

        Blocking: until the workers are gone.
        """
        self._iterators.clear()
        self._task_pool.terminate()
        # RuntimeError: this is a callback, in a thread of the pool, which cannot wait for itself.
        with contextlib.suppress(RuntimeError):
            self._task_pool.join()

    def join(self) -> None:
        """Wait for the workers of a closed or terminated pool.

        Raises:
            ValueError: The pool is still open.

        Blocking: until they are gone.
        """
        self._task_pool.join()

    def __enter__(self) -> Self:
        self._task_pool.__enter__()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.terminate()

    @override
    def __reduce__(self) -> NoReturn:
        raise NotImplementedError("pool objects cannot be passed between processes or pickled")

    def __del__(self) -> None:
        """Do nothing, unlike the base class: `TaskPool` handles this itself."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._task_pool!r}>"


# As in the standard library, a `ThreadPool` is an instance of `Pool`: dask checks that.
Pool.register(stdlib.ThreadPool)
