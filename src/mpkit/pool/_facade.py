"""`TaskPool`: the methods of a pool, and nothing else.

A worker imports the main module of the program, and with it most likely this module, without ever creating a
pool. So the parts of a pool are imported when a pool is created, and what only some methods need is imported
in these methods.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Executor, Future
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from mpkit._platform.hints import Self
from mpkit._platform.messages import shown
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.threads.deadlines import check_timeout
from mpkit._platform.threads.greenlets import patched_by
from mpkit._wire.codec import Pickler
from mpkit._wire.unsendable import Unsendable
from mpkit.errors import PoolBroken
from mpkit.pool._engine.options import PoolOptions, TaskOptions, check_chunksize
from mpkit.pool._engine.progress import Progress
from mpkit.pool._engine.server import start_server
from mpkit.pool._engine.states import RUNNING
from mpkit.pool._handle import TaskHandle
from mpkit.pool._maps import MapHandle
from mpkit.pool._protocol.channel import KEYWORDS
from mpkit.pool._worker.importing import refuse_pool_without_end

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine
    from mpkit.pool._engine.statistics import PoolStatistics, WorkerSnapshot
    from mpkit.pool._executor import ExecutorTasks
    from mpkit.pool._imap import ImapIterator
    from mpkit.pool._shared import Shared

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


class PoolView(Unsendable):
    """The methods of a pool with certain options. `TaskPool.with_options` returns it; `TaskPool` inherits it.

    Safe from: any thread of the process that created the pool.
    """

    _instead = "let a task create a pool of its own"

    def __init__(self, engine: Engine, options: TaskOptions, pool: TaskPool | None) -> None:
        self._engine = engine
        self._options = options
        # A view keeps its pool alive.
        self._pool = pool

    def __repr__(self) -> str:
        options = self._options
        return f"<{self._pool!r} with timeout={options.timeout}, retries={options.retries}>"

    # -- one call --------------------------------------------------------------------------------------------

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Have a worker call ``fn(*args, **kwargs)``.

        The function and its arguments are pickled in this call: later changes to them do not travel, and
        pickling errors are raised here.

        Returns:
            The handle of the task.

        Raises:
            TypeError: `fn` is not callable, or is a coroutine function (``async def``). (If its class has a
                ``__reduce__`` of its own, what it is unpickled to may be callable: if not, the task fails.)
            SerializationError: The function or an argument cannot be pickled.
            SharedMemoryExhausted: There is no room for big arguments.
            ClosedError: The pool is closed.
            InitializerFailed: The pool's initializer has failed.
            PoolBroken: Workers cannot be started.

        Blocking: only if the pool has `max_pending`, while that many tasks wait. Callbacks of the pool never
        wait for that. Nor does a signal handler or a ``__del__`` that interrupts this thread's own work with
        the pool: there the task is sent a little later, or cancelled if the pool ends before.

        Examples:
            >>> with TaskPool() as pool:
            ...     pool.submit(pow, 2, 10).result()
            1024
        """
        engine = self._engine
        options = self._options
        known, blob, flags = engine.functions.look_up(fn, options.pickler)
        handle: TaskHandle[R] = TaskHandle(engine)
        if kwargs:
            engine.submission.submit(known, blob, flags | KEYWORDS, (args, kwargs), handle, options)
        else:
            engine.submission.submit(known, blob, flags, args, handle, options)
        return handle

    def apply(
        self, func: Callable[..., R], args: Iterable[Any] = (), kwds: Mapping[str, Any] | None = None
    ) -> R:
        """Call ``func(*args, **kwds)`` in a worker and wait for what it returns.

        If the wait is interrupted (by Ctrl-C or an exception of a signal handler), the task is cancelled,
        even if it is running. Errors are those of `submit` and of `TaskHandle.result`.

        Blocking: until the task has ended.
        """
        return _outcome_of(self.submit(func, *args, **(kwds or {})))

    def apply_async(
        self,
        func: Callable[..., R],
        args: Iterable[Any] = (),
        kwds: Mapping[str, Any] | None = None,
        callback: Callable[[R], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
    ) -> TaskHandle[R]:
        """The same as `submit`, with the signature of `multiprocessing.Pool.apply_async`.

        Args:
            func: What to call.
            args: Its positional arguments.
            kwds: Its keyword arguments.
            callback: Called with the result, in the one thread that the pool has for callbacks. It may wait
                for other tasks; only other callbacks have to wait meanwhile. What it raises is only logged.
            error_callback: Called with the exception, in the same way.

        Raises:
            TypeError: As `submit`, or a callback is not callable.
            SerializationError, SharedMemoryExhausted: As `submit`.
            ClosedError, InitializerFailed, PoolBroken: As `submit`.

        Blocking: as `submit`.
        """
        check_callbacks(callback, error_callback)
        return _with_callbacks(self.submit(func, *args, **(kwds or {})), callback, error_callback)

    # -- many calls ------------------------------------------------------------------------------------------

    def map(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[R]:
        """Call `func` for each item and return the results in the order of the input.

        Args:
            func: What to call.
            iterable: Read completely before anything is sent; see `imap` for lazy reading.
            chunksize: Items per task; None: chosen so that all workers finish at about the same time, or 1 if
                there is a time limit.
            progress: Show a progress bar (needs ``mpkit[progress]``).

        If a worker dies, some items of its chunk may be called again, whatever `retries` is: those that ended
        within the last two milliseconds, or that the worker was processing together with the fatal one. Pass
        ``chunksize=1`` if no item may ever run twice.

        If the wait is interrupted (by Ctrl-C or an exception of a signal handler), everything that has not
        ended is cancelled, as by `TaskHandle.cancel`.

        Raises:
            Exception: The first error in the order of the input, after all items have been tried; see
                `TaskHandle.result`.
            TypeError: `func` is not callable, `iterable` is not iterable, or `chunksize` is not an integer.
            ValueError: `chunksize` is less than 1.
            ImportError: `progress` is true, and tqdm is not installed.
            SerializationError, SharedMemoryExhausted: As `submit`, for `func` and the items. What has been
                sent by then is cancelled.
            ClosedError, InitializerFailed, PoolBroken: As `submit`.

        Blocking: until all have ended.
        """
        return _outcome_of(self._map(func, _items_of(iterable), chunksize, progress, star=False))

    def map_async(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> TaskHandle[list[R]]:
        """The same as `map`, without waiting: returns a handle for the whole list.

        The callbacks are called with the list or the error, as those of `apply_async`.

        Raises:
            Exception: As `map`, and as `apply_async` for the callbacks. What a call raises comes from the
                handle.

        Blocking: as `submit`, and as long as reading the iterable takes.
        """
        check_callbacks(callback, error_callback)
        return _with_callbacks(
            self._map(func, _items_of(iterable), chunksize, progress, star=False), callback, error_callback
        )

    def starmap(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        *,
        progress: bool = False,
    ) -> list[R]:
        """The same as `map`, but each item holds the arguments of one call.

        What `map` says about the death of a worker, interrupts, errors and blocking holds here as well. An
        item that is not iterable raises a TypeError before anything is sent.
        """
        items = [tuple(item) for item in iterable]
        return _outcome_of(self._map(func, items, chunksize, progress, star=True))

    def starmap_async(
        self,
        func: Callable[..., R],
        iterable: Iterable[Iterable[Any]],
        chunksize: int | None = None,
        callback: Callable[[list[R]], object] | None = None,
        error_callback: Callable[[BaseException], object] | None = None,
        *,
        progress: bool = False,
    ) -> TaskHandle[list[R]]:
        """The same as `starmap`, without waiting: returns a handle for the whole list.

        The callbacks are called with the list or the error, as those of `apply_async`.

        Raises:
            Exception: As `map_async`.
            TypeError: An item is not iterable.

        Blocking: as `submit`, and as long as reading the iterable takes.
        """
        check_callbacks(callback, error_callback)
        handle = self._map(func, [tuple(item) for item in iterable], chunksize, progress, star=True)
        return _with_callbacks(handle, callback, error_callback)

    def imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> ImapIterator[R]:
        """Call `func` for each item, lazily; returns an iterator over the results in the order of the input.

        Args:
            func: What to call.
            iterable: May be infinite: it is only read as far as results are taken, plus `buffersize`.
            chunksize: Items per task. With 1, short items of a list or another built-in collection are sent
                in groups anyway, but each is still a task of its own. So a larger number is useful only for
                short calls over a generator; items may then be called again after the
                death of a worker, as with `map`.
            buffersize: The most items that may have been read while their results have not been taken; None:
                256 per worker, or four chunks per worker if that is more.
            progress: Show a progress bar (needs ``mpkit[progress]``).

        Raises:
            SerializationError: `func` cannot be pickled. (Errors of single items come from the iterator.)
            TypeError, ValueError, ImportError, ClosedError, InitializerFailed, PoolBroken: As `map`, and for
                `buffersize` as for `chunksize`.

        Blocking: reads some of the input, and sends it as `submit` does. The iterator waits for results.
        """
        return self._imap(func, iterable, chunksize, buffersize, progress, ordered=True)

    def imap_unordered(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int = 1,
        *,
        buffersize: int | None = None,
        progress: bool = False,
    ) -> ImapIterator[R]:
        """The same as `imap`, with the results in the order in which they arrive."""
        return self._imap(func, iterable, chunksize, buffersize, progress, ordered=False)

    def _imap(
        self,
        func: Callable[[T], R],
        iterable: Iterable[T],
        chunksize: int,
        buffersize: int | None,
        progress: bool,
        *,
        ordered: bool,
    ) -> ImapIterator[R]:
        from mpkit.pool._imap import ImapIterator  # noqa: PLC0415  see the top of this file
        from mpkit.pool._lazy_map import LazyMap  # noqa: PLC0415

        lazy = LazyMap(
            self._engine,
            func,
            iterable,
            chunksize,
            buffersize,
            self._options,
            ordered=ordered,
            progress=progress,
        )
        return ImapIterator(lazy)

    def _map(
        self,
        func: Callable[..., R],
        items: Sequence[Any],
        chunksize: int | None,
        progress: bool,
        *,
        star: bool,
    ) -> MapHandle[R]:
        from mpkit.pool._engine.function_table import name_of  # noqa: PLC0415  see the top of this file

        engine = self._engine
        engine.status.check_usable()
        if chunksize is not None:
            chunksize = check_chunksize(chunksize)
        handle: MapHandle[R] = MapHandle(engine, Progress(progress, len(items), name_of(func)))
        handle.start(func, items, chunksize, self._options, star=star)
        return handle


class TaskPool(PoolView):
    """A pool of worker processes that call functions. A worker that dies fails only the task that it ran.

    That task fails with `WorkerCrashed`; everything else carries on, and the worker is replaced. Leaving a
    ``with`` block closes the pool and waits for its tasks; on an exception it terminates them. A pool that is
    dropped, or that still has tasks when the program ends, is terminated: pending tasks are cancelled (a
    `concurrent.futures.ProcessPoolExecutor` would finish them). So use ``with``, or `close` and `join`.

    Args:
        processes: How many workers; None: one for each CPU that this process may use (affinity and
            control-group quota).
        initializer: Called in each worker when it starts. If it raises, every pending task gets
            `InitializerFailed`.
        initargs: Its arguments.
        maxtasksperchild: Tasks after which a worker is replaced; None: never. What its tasks have left
            running (a non-daemon thread, a multiprocessing process) may go on for a minute, or ten grace
            periods if that is longer; less if there are more such workers than `processes`.
        context: A start method or a context; None: what the application has set, or has fixed by using
            multiprocessing itself; otherwise forkserver where it exists, else spawn.
        max_memory_bytes: A task whose worker uses more is killed, with everything that it has started, and
            ends with `WorkerMemoryExceeded`; None: no limit. What counts is resident memory, including the
            pages of shared objects and mapped arrays that the task has touched: add their size to the limit.
        grace_period: Seconds that a task has to stop after the interrupt, and again after SIGTERM.
        max_pending: The most tasks that may wait unsent; beyond that, `submit` blocks. None: no limit.
        pickler: "cloudpickle" also accepts lambdas and functions from an interactive session (needs
            ``mpkit[cloudpickle]``).
        name: Shown in threads, processes, messages, and the commands `ps` and `top`.
        forward_logs: Pass log records from the workers to the handlers of this process, in the thread that
            the pool keeps for callbacks.

    Raises:
        TypeError: An argument has the wrong type.
        ValueError: An argument is out of range.
        ImportError: `pickler` is "cloudpickle", and that package is not installed.
        SerializationError: The initializer or its arguments cannot be pickled.
        RuntimeError: The system refuses a thread; or this process is still starting, and its main module
            creates the pool without ``if __name__ == "__main__":``. Nothing is left behind.
        OSError: The system refuses processes or shared memory, or has no named semaphores (Windows); nothing
            is left behind.
        PoolBroken: Multiprocessing's fork server has died while it was asked for a worker; or gevent or
            eventlet has replaced the threads of this process, which a pool cannot do without; or each worker
            would create a pool in turn, because a module that they import does so.

    Blocking: creating a pool waits until its worker processes exist, not until they are initialized.

    Safe from: any thread of the process that created it. A fork of that process cannot use it: calls raise
    `ClosedError` there.

    Examples:
        >>> with TaskPool(processes=2) as pool:
        ...     pool.map(abs, [-1, 2, -3])
        [1, 2, 3]
    """

    def __init__(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
        context: str | BaseContext | None = None,
        *,
        max_memory_bytes: int | None = None,
        grace_period: float = 1.0,
        max_pending: int | None = None,
        pickler: Pickler = "pickle",
        name: str | None = None,
        forward_logs: bool = True,
    ) -> None:
        self._start(
            PoolOptions(
                processes,
                initializer,
                initargs,
                maxtasksperchild,
                context,
                max_memory_bytes,
                grace_period,
                max_pending,
                pickler,
                name,
                forward_logs,
            )
        )

    @classmethod
    def _of(cls, options: PoolOptions) -> Self:
        """Create a pool from options that have been checked already."""
        pool = cls.__new__(cls)
        pool._start(options)
        return pool

    def _start(self, options: PoolOptions) -> None:
        refuse_pool_without_end()
        _refuse_greenlets()
        # First, so that the fork server comes up while the rest is created.
        start_server(options.context)
        from mpkit.pool._engine.engine import Engine  # noqa: PLC0415  see the top of this file

        engine: Engine | None = None
        with deferred_interrupts() as interrupts:
            try:
                engine = Engine(options)
                super().__init__(engine, TaskOptions(pickler=options.pickler), None)
                self._executor_tasks: ExecutorTasks | None = None
                # Not `repr(self)`: that of a derived class may use attributes that its `__init__` has not set
                # yet.
                self._finalizer = weakref.finalize(self, _dropped, engine, TaskPool.__repr__(self))
                # At exit the engine's own hook ends the pool, and earlier than this would.
                self._finalizer.atexit = False
                interrupts.hand_on()
            except BaseException:
                if engine is not None:
                    # Nobody will ever have this pool.
                    engine.terminate()
                    engine.join(None)
                raise

    # -- options ---------------------------------------------------------------------------------------------

    def with_options(
        self, timeout: float | None = None, retries: int = 0, pickler: Pickler | None = None
    ) -> PoolView:
        """The same methods, with options for each task.

        Args:
            timeout: Seconds that a task may run, measured from its start in the worker. After that it is
                interrupted, then terminated, then killed, with a grace period in between, and ends with
                `TaskTimeout`. What it has started (programs, processes) and not ended itself ends with it.
                For a chunk of a map, the limit applies to the whole chunk.
            retries: How often a task is sent again if its worker dies. Exceptions raised
                by the task are never retried.
            pickler: None: that of the pool.

        Raises:
            TypeError: An option has the wrong type.
            ValueError: `timeout` is not more than 0, `retries` is negative, or there is no such pickler.
            ImportError: The package cloudpickle is not installed.

        Examples:
            >>> with TaskPool() as pool:
            ...     pool.with_options(timeout=5, retries=2).submit(pow, 2, 10).result()
            1024
        """
        if pickler is None:
            pickler = self._engine.options.pickler
        return PoolView(self._engine, TaskOptions(timeout, retries, pickler), self)

    @property
    def executor(self) -> Executor:
        """A real `concurrent.futures.Executor` over this pool, for `run_in_executor` and other libraries.

        Shutting it down does not affect the pool. Its `map` and ``shutdown(cancel_futures=True)`` cancel
        tasks that have not begun; unlike the `cancel` of a handle, they never stop running tasks. Ctrl-C in
        its ``with`` block or in its `shutdown` stops all of its tasks.
        """
        from mpkit.pool._executor import PoolExecutor  # noqa: PLC0415  see the top of this file

        # Under the lock: if two threads ask at once, both executors share their tasks, so that shutting down
        # one shuts down the other.
        return PoolExecutor(self, self._engine.dispatcher.lock.run(self._tasks_of_executor))

    def _tasks_of_executor(self) -> ExecutorTasks:
        from mpkit.pool._executor import ExecutorTasks  # noqa: PLC0415  see the top of this file

        if self._executor_tasks is None or self._executor_tasks.is_shut_down:
            self._executor_tasks = ExecutorTasks()
        return self._executor_tasks

    def share(self, obj: T) -> Shared[T]:
        """Pickle an object once into shared memory, for many tasks. Blocks only for as long as that takes.

        Pass the result to tasks as an argument, or inside a list, tuple, dict or another shared object: the
        function receives the object itself. Its big buffers (of a numpy array, for example) are mapped
        read-only instead of copied.

        Returns:
            What to pass to the tasks. `close`, the end of a ``with`` block, or dropping the last reference
            frees the memory, as soon as the tasks that were sent before have ended.

        Raises:
            SerializationError: The object cannot be pickled.
            SharedMemoryExhausted: There is no room.
            ClosedError, InitializerFailed, PoolBroken: As `submit`.
        """
        self._engine.status.check_usable()
        from mpkit.pool._shared import Shared  # noqa: PLC0415  see the top of this file

        return Shared(obj, self._options.pickler)

    # -- the end ---------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Accept no more tasks. Those already submitted run, then the workers end. Never blocks."""
        self._check_process()
        with deferred_interrupts():
            self._engine.close()
            # Last: if an exception comes before this, the pool is still ended when it is dropped.
            self._finalizer.detach()

    def terminate(self) -> None:
        """End the pool at once. Never blocks: to wait until the workers are gone, call `join`.

        Pending handles end with `TaskCancelled`. Workers are terminated, and killed after the grace period,
        together with everything that their current task has started. What earlier
        tasks have left running stays.
        """
        self._check_process()
        with deferred_interrupts():
            self._engine.terminate()
            self._finalizer.detach()

    def join(self, timeout: float | None = None) -> bool:
        """Wait until a closed or terminated pool has ended.

        It has ended when all of its workers and threads are gone, and all processes
        that stopped tasks have started.

        Args:
            timeout: Seconds to wait; None: until it has ended.

        Returns:
            Whether it has ended.

        Raises:
            ValueError: The pool is still open, or `timeout` is negative or NaN.
            TypeError: `timeout` is not a number.
            RuntimeError: Called from a callback of this pool, or from a signal handler or a ``__del__`` that
                interrupts this thread's own work with the pool: it would wait for itself.

        Blocking: until the pool has ended, `timeout` seconds at most.
        """
        self._check_process()
        self._engine.refuse_reentry()
        if self._engine.status.state is RUNNING:
            raise ValueError(f"{self!r} is still open: call close() or terminate() before join()")
        return self._engine.join(check_timeout(timeout))

    def _check_process(self) -> None:
        self._engine.status.check_process()

    def __enter__(self) -> Self:
        self._engine.status.check_usable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            try:
                self.close()
                self.join()
            except BaseException:
                # Ctrl-C, most likely while waiting for the last tasks.
                self.terminate()
                self.join()
                raise
        else:
            self.terminate()
            self.join()

    # -- insight ---------------------------------------------------------------------------------------------

    def workers(self) -> list[WorkerSnapshot]:
        """What each worker is doing now. Blocks for a moment only."""
        self._check_process()
        return self._engine.insight.worker_snapshots()

    def statistics(self) -> PoolStatistics:
        """How many tasks there are, and what happened to those that have ended. Blocks for a moment only."""
        self._check_process()
        return self._engine.insight.statistics()

    def stacks(self) -> dict[int, str]:
        """The Python stack of each worker now, by pid; works even while C code holds the interpreter lock.

        The text is empty for a worker that does not answer within a second (because it is stopped by a
        signal, or just starting).

        Blocking: a few milliseconds for each worker, a second at most.
        """
        self._check_process()
        return self._engine.insight.stacks()

    def __repr__(self) -> str:
        engine = self._engine
        options = engine.options
        pending = engine.dispatcher.ledger.live
        state = engine.status.state
        return f"<TaskPool {options.name!r} {state} processes={options.processes} pending={pending}>"


def _as_one(
    callback: Callable[[Any], object] | None, error_callback: Callable[[BaseException], object] | None
) -> Callable[[Future[Any]], None]:
    """The two callbacks of `apply_async` as one done callback."""

    def call(handle: Future[Any]) -> None:
        try:
            value = handle.result()
        except BaseException as error:  # noqa: BLE001  a task may have raised SystemExit
            if error_callback is not None:
                error_callback(error)
        else:
            if callback is not None:
                callback(value)

    return call


def check_callbacks(*callbacks: object) -> None:
    """Each is something to call, or None."""
    for callback in callbacks:
        if callback is not None and not callable(callback):
            raise TypeError(f"a callback must be callable or None; got {shown(callback)}")


def _with_callbacks(
    handle: TaskHandle[R],
    callback: Callable[[R], object] | None,
    error_callback: Callable[[BaseException], object] | None,
) -> TaskHandle[R]:
    if callback is not None or error_callback is not None:
        handle._call_back(_as_one(callback, error_callback))
    return handle


def _items_of(iterable: Iterable[Any]) -> Sequence[Any]:
    """All items of a map. A range is pickled as a range: its numbers are created in the workers."""
    return iterable if type(iterable) is range else list(iterable)


def _outcome_of(handle: TaskHandle[R]) -> R:
    """The result of a task whose handle nobody else has."""
    try:
        return handle.result()
    except BaseException:
        try:
            # If this is the task's own error, the task has ended and this does nothing. Otherwise the wait
            # was interrupted.
            handle.cancel()
        finally:
            # Break a reference cycle: the handle refers to the error, whose traceback refers to this frame
            # and those of all callers. Their variables would live until the next garbage collection.
            del handle
        raise


def _refuse_greenlets() -> None:
    library = patched_by()
    if library is not None:
        raise PoolBroken(
            f"{library} has replaced the threads of this process, or its select, by greenlets, and the "
            "threads of a pool would block all of these forever. Use the pool in a process that is not "
            "patched: a server's worker class with threads (gunicorn: gthread), or a WorkerProcess"
        )


def _dropped(engine: Engine, name: str) -> None:
    # Runs in whichever thread drops the pool or collects garbage, perhaps in the middle of a critical section
    # of this very pool: so it takes no lock.
    if engine.status.state is RUNNING and not engine.status.is_forked():
        engine.dropped = True
        engine.supervisor.poke()
        # Our caller is `weakref.finalize`, and the caller of that is the line which dropped the pool.
        warnings.warn(
            f"unclosed {name}: use `with`, or call close() and join()", ResourceWarning, stacklevel=3
        )
