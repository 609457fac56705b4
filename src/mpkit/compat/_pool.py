"""`Pool` as `multiprocessing` has it, over `mpkit.TaskPool`."""

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
from mpkit._platform.threads.deadlines import check_timeout, deadline_of, remaining
from mpkit.compat._errors import original_error, pool_error, pool_errors
from mpkit.compat._iterators import IMapIterator
from mpkit.compat._numbers import not_bool, not_negative
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

# Code that is given a pool, a result or an iterator may ask whether it is one of the standard library (dask
# does). Ours have no more of those than the kind; not even their `__init__` runs.

_NO_KEYWORDS: Mapping[str, Any] = MappingProxyType({})
_FEW_ITERATORS = 16


class AsyncResult(stdlib.ApplyResult[R]):
    """What the ``_async`` methods of a pool return: `multiprocessing.pool.AsyncResult`.

    It is ready when its callback has returned.
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
            multiprocessing.TimeoutError: the time ran out; you may ask again.
            multiprocessing.pool.MaybeEncodingError: the result could not be pickled.
            ValueError, RuntimeError: as `wait`.
            Exception: what the call raised.

        Blocking: until it is there, for at most `timeout` seconds.
        """
        self.wait(timeout)
        if not self.ready():
            raise WaitTimeout(f"{self!r} was not ready in time; get() can be called again")
        with pool_errors():
            return self._handle.result()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the call has ended, for at most `timeout` seconds. Unpickles nothing.

        Raises:
            ValueError: this process is a fork of the pool's (`mpkit.errors.ClosedError`).
            RuntimeError: called by a signal handler in the middle of this thread's work with the pool.
        """
        deadline = deadline_of(check_timeout(not_negative(timeout)))
        # Another future has ended: it tells that the arguments could not be pickled.
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
            ValueError: it has not ended yet.
        """
        if not self.ready():
            raise ValueError(f"{self!r} not ready")
        return not self._handle.cancelled() and self._handle.exception() is None

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {self._handle!r}>"


class MapResult(AsyncResult[list[R]], stdlib.MapResult[R]):
    """What the ``_async`` maps of a pool return: `multiprocessing.pool.MapResult`."""

    @property
    def _number_left(self) -> int:
        # A private name of the standard library, by which programs show the progress of a map.
        handle: Future[Any] = self._handle
        return len(handle._sink.tasks) if isinstance(handle, MapHandle) and not handle.done() else 0


class _Callbacks(Generic[R]):
    """The callbacks of one result. They keep the pool alive until one of them has been called.

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
        """The call has returned."""
        self._call(self._callback, result)

    def failed(self, error: BaseException) -> None:
        """The call has raised."""
        self._call(self._error_callback, pool_error(error))

    def wait(self, timeout: float | None) -> bool:
        """Wait until it has been called; whether it has.

        A callback that asks for results does not wait for callbacks: one thread calls them all, so it would
        wait for itself. Nor is one waited for in a fork, where that thread is not.
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
    """What waits for a worker. Programs ask how much that is, to submit no more for a while."""

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool

    def qsize(self) -> int:
        """How many tasks have not begun; a chunk of a map is one."""
        return self._pool.statistics().queued

    def empty(self) -> bool:
        """Whether there is none."""
        return not self.qsize()


#: What is told by the states of the standard library; all others are its end.
_STATES = {RUNNING: stdlib.RUN, CLOSED: stdlib.CLOSE}


class Pool(stdlib.Pool, metaclass=ABCMeta):
    """`multiprocessing.Pool`: workers that call functions. Leaving a ``with`` block terminates it.

    A worker that dies fails the task that it ran, with `mpkit.errors.WorkerCrashed`, instead of hanging the
    pool. Workers may have children of their own. `imap` reads its input as results are taken, and the rest of
    it in `close`. Log records of workers are not forwarded, as in the standard library; `mpkit.TaskPool` does
    that.

    Args:
        processes: how many workers. None: one for each CPU that this process may use.
        initializer: called in each worker when it starts.
        initargs: its arguments.
        maxtasksperchild: after how many tasks a worker is replaced. None: never.
        context: how workers are started, from `multiprocessing.get_context` or `mpkit.compat.get_context`.
            None: what the program has set, else the default of the running Python.

    Raises:
        ValueError: a number is too small, or `maxtasksperchild` is not an integer.
        TypeError, AttributeError: another argument has the wrong type.
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
            raise ValueError(f"maxtasksperchild must be a positive int or None; got {maxtasksperchild!r}")
        # Asked of whatever was given, as there: a name instead of a context is an AttributeError.
        method = default_start_method() if context is None else context.get_start_method()
        # Programs have set up the logging of their workers themselves, mostly in the initializer.
        options = PoolOptions(
            not_bool(processes), initializer, initargs, not_bool(maxtasksperchild), method, forward_logs=False
        )
        options.worker_names = worker_names(method, "PoolWorker")
        self._task_pool = TaskPool._of(options)
        # The standard library runs what was given to imap to its end even if nobody takes the results.
        self._iterators: set[SharedResults[Any]] = set()
        #: With so many, those of them that nobody needs any more are looked for.
        self._most_iterators = _FEW_ITERATORS

    # Private names of the standard library that programs use nonetheless, to look after the workers and what
    # is left to do.

    @property
    def _pool(self) -> list[BaseProcess]:
        return processes_of(self._task_pool)

    @property
    def _cache(self) -> dict[int, str]:
        # There, results by their numbers: programs ask how many there are.
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
        """Have a worker call ``func(*args, **kwds)``.

        The callbacks are called in a thread of the pool.
        """
        return self._submitted(
            AsyncResult,
            lambda *hooks: self._task_pool.apply_async(func, args, dict(kwds), *hooks),
            callback,
            error_callback,
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
    ) -> MapResult[R]:
        """Have workers call `func` for each item."""
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

    # None, which typeshed allows, is an error there as well.

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
        # Refuses what a pool that takes no more tasks refuses; an empty input would send none.
        self._task_pool.__enter__()
        with pool_errors():
            results = SharedResults(start())
        if len(self._iterators) >= self._most_iterators:
            self._forget_finished()
        self._iterators.add(results)
        return IMapIterator(results, self._forget)

    def _forget(self, results: SharedResults[Any]) -> None:
        """Let go of an iterator whose results have all been taken."""
        self._iterators.discard(results)

    def _forget_finished(self) -> None:
        """Let go of the iterators that have read everything, and whose calls have ended."""
        self._task_pool._engine.collector.look()
        finished = [results for results in list(self._iterators) if not results.is_under_way()]
        self._iterators.difference_update(finished)
        # Not with each new one: many may really be under way.
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
        """The result of calls for each item."""
        items = iterable if isinstance(iterable, Sized) else list(iterable)
        if not len(items):
            # As there: nothing has been called, so there is nothing to tell.
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
        """The result of calls that have been submitted, or could not be: their arguments cannot be pickled.

        Args:
            kind: of the result.
            submit: is given what is to be called with the result, and with the error.
            callback: as the user has given it.
            error_callback: likewise.
        """
        callbacks = None
        if callback is not None or error_callback is not None:
            callbacks = _Callbacks(self, callback, error_callback)
        try:
            if callbacks is None:
                return kind(submit(None, None), self)
            return kind(submit(callbacks.succeeded, callbacks.failed), self, callbacks)
        except SerializationError as error:
            # The standard library finds out in a thread of the pool: the original error comes out of get().
            original = original_error(error)
        failed: Future[Any] = Future()
        failed.set_exception(original)
        if callbacks is not None:
            # There; what it raises goes into the log, as with a call that has run.
            tell = functools.partial(failed.add_done_callback, lambda _: callbacks.failed(original))
            self._task_pool._engine.collector.call_back(tell)
        return kind(failed, None, callbacks)

    # -- the end
    # -------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more tasks; those submitted go on. The rest of the input of `imap` is read now."""
        for results in list(self._iterators):
            results.read_all()
        self._task_pool.close()

    def terminate(self) -> None:
        """End at once, without finishing the outstanding tasks."""
        self._iterators.clear()
        self._task_pool.terminate()
        # RuntimeError: called from a callback, in the pool's own thread, which cannot wait for itself.
        with contextlib.suppress(RuntimeError):
            self._task_pool.join()

    def join(self) -> None:
        """Wait for the workers of a closed or terminated pool.

        Raises:
            ValueError: the pool is still open.

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
        """Nothing, unlike there: the pool inside knows what to do."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self._task_pool!r}>"


# As there: whoever is given a pool asks whether it is one (dask does).
Pool.register(stdlib.ThreadPool)
