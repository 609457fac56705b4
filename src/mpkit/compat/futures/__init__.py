"""`concurrent.futures` with mpkit inside: ``from mpkit.compat import futures`` is a drop-in.

`ProcessPoolExecutor` is a wrapper over `mpkit.TaskPool` with the signature of the standard library; all other
names are the standard library's own. A worker that dies fails only the task that it ran, with
`mpkit.errors.WorkerCrashed` (a `BrokenProcessPool`). On every Python version, `map` has `buffersize`, and
there are `terminate_workers` and `kill_workers`.

Examples:
    >>> from mpkit.compat import futures
    >>> with futures.ProcessPoolExecutor(2) as executor:
    ...     list(executor.map(abs, [-1, -2]))
    [1, 2]
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.util
import os
import sys
import threading
from concurrent.futures import (
    ALL_COMPLETED,
    FIRST_COMPLETED,
    FIRST_EXCEPTION,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    InvalidStateError,
    ThreadPoolExecutor,
    TimeoutError,  # noqa: A004  concurrent.futures calls it so
    as_completed,
    wait,
)
from concurrent.futures.process import BrokenProcessPool
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar

from mpkit._platform.hints import override
from mpkit._platform.stdlib.exit_hooks import at_exit_first
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.weak_group import WeakGroup
from mpkit._wire.codec import UnsendableError
from mpkit.compat._errors import original_error
from mpkit.compat._numbers import not_bool
from mpkit.compat._processes import default_start_method, processes_of, worker_names
from mpkit.compat.futures._future import ExecutorFuture
from mpkit.errors import ClosedError, SerializationError
from mpkit.pool import TaskPool
from mpkit.pool._engine.options import PoolOptions, check_count
from mpkit.pool._engine.states import BROKEN
from mpkit.pool._executor import PoolExecutor, map_in_order

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from multiprocessing.context import BaseContext
    from multiprocessing.process import BaseProcess
    from types import TracebackType

__all__ = [
    "ALL_COMPLETED",
    "FIRST_COMPLETED",
    "FIRST_EXCEPTION",
    "BrokenExecutor",
    "CancelledError",
    "Executor",
    "Future",
    "InvalidStateError",
    "ProcessPoolExecutor",
    "ThreadPoolExecutor",
    "TimeoutError",
    "as_completed",
    "wait",
]

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")

if sys.version_info >= (3, 14):
    # Some builds have no subinterpreters.
    with contextlib.suppress(ImportError):
        from concurrent.futures import InterpreterPoolExecutor

        __all__ += ["InterpreterPoolExecutor"]

#: The executors of this process that have not been shut down.
_open_executors: WeakGroup[ProcessPoolExecutor] = WeakGroup()
#: Held while an executor starts its workers, or is shut down.
_starting = InterruptibleLock()
#: Pools of executors that have been shut down and may still have tasks. Kept here until they have ended.
_finishing: set[TaskPool] = set()
#: This process is ending, and accepts no more tasks.
_is_ending = False


class ProcessPoolExecutor(concurrent.futures.process.ProcessPoolExecutor):
    """As `concurrent.futures.ProcessPoolExecutor`: workers that call functions, as futures.

    The workers are started for the first task, and belong to the process that submits it. So an executor can
    be created where no process may be started yet: at the top of a module, before the functions that it will
    call; in the main module, which each worker imports again; in a server that has not forked yet. Log
    records of workers are not forwarded, as in the standard library; `mpkit.TaskPool` does that.

    Args:
        max_workers: How many workers. None: one for each CPU that this process may use.
        mp_context: How workers are started, from `multiprocessing.get_context` or `mpkit.compat.get_context`.
            None: what the program has set, else the default of the running Python (spawn with
            `max_tasks_per_child`).
        initializer: Called in each worker when it starts.
        initargs: Its arguments.
        max_tasks_per_child: After how many tasks a worker is replaced. None: never.

    Raises:
        ValueError: A number is too small, or `max_tasks_per_child` is combined with the fork method.
        TypeError, AttributeError: An argument has the wrong type.
    """

    def __init__(
        self,
        max_workers: int | None = None,
        mp_context: BaseContext | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: tuple[Any, ...] = (),
        *,
        max_tasks_per_child: int | None = None,
    ) -> None:
        # Checked here, because the messages of the pool use other names for these arguments.
        max_workers = _checked(max_workers, "max_workers")
        max_tasks_per_child = _checked(max_tasks_per_child, "max_tasks_per_child")
        context: BaseContext | str
        if mp_context is None:
            context = default_start_method() if max_tasks_per_child is None else "spawn"
        else:
            context = mp_context
            # As in the standard library, a string instead of a context raises an AttributeError.
            if mp_context.get_start_method() == "fork" and max_tasks_per_child is not None:
                raise ValueError(
                    "max_tasks_per_child is incompatible with the 'fork' multiprocessing start method; "
                    "supply a different mp_context."
                )
        # Programs for the standard library set up the logging of their workers themselves.
        self._options = options = PoolOptions(
            max_workers, initializer, initargs, max_tasks_per_child, context, forward_logs=False
        )
        options.worker_names = worker_names(options.context.get_start_method(), "Process")
        # Private in the standard library, but programs use it to start processes
        # of their own in the same way.
        self._mp_context = self._options.context if mp_context is None else mp_context
        #: The pool, and its executor: None before the first task.
        self._pool: TaskPool | None = None
        self._futures: PoolExecutor | None = None
        self._is_shut_down = False
        self._ended_by_force = False
        #: The process that has to shut down the pool; None before there is one, and after that has been done.
        self._open_in: int | None = None
        _open_executors.add(self)

    if not TYPE_CHECKING:
        # These are private attributes in the standard library, but other libraries read them (dask, for one).

        @property
        def _max_workers(self) -> int:
            return self._options.processes

        @property
        def _pending_work_items(self) -> dict[int, str]:
            # Used to see how much is left to do. (In the standard library the values are work items.)
            return {} if self._pool is None else self._pool._engine.insight.unfinished()

        @property
        def _processes(self) -> dict[int | None, BaseProcess]:
            # Used to end workers that hang, before there was `terminate_workers` (Python 3.14).
            return {} if self._pool is None else {each.pid: each for each in processes_of(self._pool)}

        @property
        def _shutdown_thread(self) -> bool:
            # Used to see whether the executor accepts tasks.
            return self._is_shut_down

        @property
        def _broken(self) -> bool:
            # Used to see whether a new executor is needed. (Here, the death of a worker does not break it.)
            return self._ended_by_force or (
                self._pool is not None and self._pool._engine.status.state == BROKEN
            )

    @override
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Have a worker call ``fn(*args, **kwargs)``. Pickling errors are those of the future.

        The first call starts the workers, and blocks meanwhile; later ones never block.

        Raises:
            RuntimeError: After `shutdown`.
            BrokenProcessPool: The initializer has failed, or workers cannot be started, or they were ended
                with `terminate_workers` or `kill_workers`.
        """
        if self._ended_by_force:
            raise BrokenProcessPool(
                "the workers were terminated or killed; create a new executor for more tasks"
            )
        futures = self._futures or self._start()
        try:
            handle = futures.submit(fn, *args, **kwargs)
        except ClosedError:
            # Another thread has shut the executor down meanwhile. Raise an error
            # about the executor, not the pool.
            self._refuse_after_shutdown()
            raise
        except SerializationError as error:
            failed: Future[R] = Future()
            failed.set_exception(original_error(error))
            return failed
        # The pool has created the handle. A future around it would cost more than a short task does, and the
        # thread that waits in `result` could not fetch outcomes itself.
        handle.__class__ = ExecutorFuture
        return handle

    def _start(self) -> PoolExecutor:
        """The executor of the pool. The pool is created now, unless another thread has just done so."""
        if _starting.is_owned():
            raise RuntimeError(
                "this thread is already starting an executor (this was called by a signal handler or a "
                "__del__): submit in another thread, or later"
            )
        return _starting.run(self._start_once)

    def _start_once(self) -> PoolExecutor:
        self._refuse_after_shutdown()
        if self._futures is None:
            self._pool = TaskPool._of(self._options)
            try:
                # A signal handler may have shut this executor down meanwhile.
                self._refuse_after_shutdown()
            except RuntimeError:
                self._pool.terminate()
                self._pool.join()
                raise
            self._open_in = os.getpid()
            self._futures = PoolExecutor(self._pool)
        return self._futures

    def _refuse_after_shutdown(self) -> None:
        if self._is_shut_down:
            raise RuntimeError("cannot schedule new futures after shutdown")
        if _is_ending:
            raise RuntimeError("cannot schedule new futures after interpreter shutdown")

    @override
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call `fn` for the items of the iterables; returns an iterator over the results, in order.

        If the iteration ends early, tasks that have not begun are cancelled; running ones go on.

        Args:
            fn: What to call, with one argument from each iterable.
            iterables: Read at once, or with `buffersize` as results are taken.
            timeout: Seconds from now within which every result must be there; None: no limit.
            chunksize: Items per task.
            buffersize: The most tasks whose results have not been taken; None: no limit.

        Raises:
            ValueError: `chunksize` or `buffersize` is less than 1, or `timeout` is NaN.
            TypeError: `chunksize` or `buffersize` is not an integer, or `timeout` is not a number.
            TimeoutError: From the iterator: the time has run out.
            Exception: From the iterator: what a call raised.
        """
        return map_in_order(self.submit, fn, iterables, timeout, not_bool(chunksize), not_bool(buffersize))

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Accept no more tasks; those submitted go on.

        Args:
            wait: Return only when all tasks have ended and the workers are gone. Ctrl-C (`KeyboardInterrupt`)
                cancels all tasks, even if they are running.
            cancel_futures: Cancel the tasks that have not begun.

        Blocking: with `wait`, until the workers are gone.
        """
        _forget_finished()
        # Under this lock, so not while another thread starts the executor.
        pool = _starting.run(self._mark_shut_down)
        if pool is None or self._futures is None:
            return
        self._futures.shutdown(wait=False, cancel_futures=cancel_futures)
        pool.close()
        if wait:
            try:
                pool.join()
            except KeyboardInterrupt:
                self._cancel_all()
                raise
            _finishing.discard(pool)

    def _cancel_all(self) -> None:
        """Cancel all tasks, after Ctrl-C.

        In a terminal, Ctrl-C reaches the workers, too. In the standard library it ends the tasks that they
        are running; in mpkit, the workers leave it to the parent to decide.
        """
        if self._futures is not None:
            self._futures.cancel_all()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down, and wait for the tasks; after Ctrl-C they are cancelled first."""
        if isinstance(error, KeyboardInterrupt):
            self._cancel_all()
        self.shutdown(wait=True)

    def terminate_workers(self) -> None:
        """End the workers with SIGTERM. Running tasks fail with `BrokenProcessPool`, others are cancelled."""
        self._end_workers(lambda process: process.terminate())

    def kill_workers(self) -> None:
        """End the workers with SIGKILL. Running tasks fail with `BrokenProcessPool`, others are cancelled."""
        self._end_workers(lambda process: process.kill())

    def _end_workers(self, end: Callable[[BaseProcess], None]) -> None:
        self._ended_by_force = True
        # First, so that no worker begins another task, and none is replaced.
        self.shutdown(wait=False, cancel_futures=True)
        # A worker that ignores the signal does not keep the program from ending: the
        # pool's own exit hook kills it.
        pool = self._pool
        if pool is None:
            return
        _finishing.discard(pool)
        for process in processes_of(pool):
            end(process)

    @override
    def __reduce__(self) -> NoReturn:
        raise UnsendableError(
            f"a {type(self).__name__} cannot be pickled or copied: it belongs to its process"
        )

    def _mark_shut_down(self) -> TaskPool | None:
        """Accept no more tasks; returns the pool, if there is one."""
        self._is_shut_down = True
        pool = self._pool
        if pool is not None and self._open_in == os.getpid():
            # From now on, the end of the program waits for the tasks, whatever happens.
            _finishing.add(pool)
        self._open_in = None
        _open_executors.discard(self)
        return pool

    # `os.getpid` is bound early, because modules may be empty when the interpreter is being finalized.
    def __del__(self, _getpid: Callable[[], int] = os.getpid) -> None:
        # An executor that is dropped finishes its tasks. In a new thread, because the garbage collector may
        # run in the middle of one of the pool's own operations; and not a daemon thread, because the program
        # has to wait for it.
        pool = getattr(self, "_pool", None)
        if pool is not None and self._open_in == _getpid():
            # Needed in a child of multiprocessing, which ends its pools before it waits for threads.
            _finishing.add(pool)
            ending = threading.Thread(
                target=self._close_and_join, args=(pool,), name="mpkit-executor-dropped"
            )
            try:
                ending.start()
            except RuntimeError:
                # The system refuses a thread, or the interpreter is being finalized.
                pool.terminate()

    @staticmethod
    def _close_and_join(pool: TaskPool) -> None:
        pool.close()
        pool.join()
        _finishing.discard(pool)


def _checked(count: int | None, name: str) -> int | None:
    return None if count is None else check_count(not_bool(count), name)


def _forget_finished() -> None:
    """Drop the pools that have ended."""
    for pool in list(_finishing):
        # A pool has not ended if this is one of its callbacks (RuntimeError), or if the thread that has added
        # it has not closed it yet (ValueError).
        with contextlib.suppress(RuntimeError, ValueError):
            if pool.join(0):
                _finishing.discard(pool)


def __getattr__(name: str) -> ModuleType:
    """Load a submodule on first use: mpkit's own, else that of the standard library."""
    if not name.startswith("_"):
        for package in (__name__, concurrent.futures.__name__):
            if importlib.util.find_spec(f"{package}.{name}") is not None:
                return importlib.import_module(f"{package}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _shut_down_all() -> None:
    """At the end of a program: shut down all executors, and wait for their tasks as the original does."""
    global _is_ending
    if _is_ending:
        return  # in the second call, also if Ctrl-C has ended the first one
    _is_ending = True
    for executor in _open_executors.alive():
        # Including those that have not started: they must not start any more.
        if executor._open_in in (None, os.getpid()):
            executor.shutdown()
    for pool in list(_finishing):
        pool.close()
        pool.join()


at_exit_first(_shut_down_all)


@in_forked_children
def _forget_after_fork() -> None:
    global _starting, _is_ending
    _starting = InterruptibleLock()  # it may have been held by a thread that does not exist here
    _is_ending = False
    # These pools belong to the parent.
    _finishing.clear()
