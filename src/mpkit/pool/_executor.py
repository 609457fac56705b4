"""A real `concurrent.futures.Executor` over a pool."""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from concurrent.futures import wait as wait_for
from types import TracebackType
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from mpkit._platform.hints import override
from mpkit._platform.threads.deadlines import check_timeout, deadline_of, not_negative, remaining
from mpkit._platform.threads.interruptible_lock import InterruptibleLock
from mpkit._platform.threads.weak_group import WeakGroup
from mpkit.pool._engine.options import check_count
from mpkit.pool._handle import TaskHandle

if TYPE_CHECKING:
    from mpkit.pool._engine.engine import Engine

P = ParamSpec("P")
R = TypeVar("R")


class ExecutorTasks:
    """The tasks of an executor that have not ended, until it is shut down.

    The pool refers to this object and not to the executor, which refers to the pool: in a reference cycle, a
    dropped pool would only be noticed by the garbage collector.
    """

    def __init__(self) -> None:
        self._lock = InterruptibleLock()
        self._handles: WeakGroup[TaskHandle[Any]] = WeakGroup()
        self.is_shut_down = False

    def add(self, handle: TaskHandle[Any]) -> bool:
        """Add a task that has been submitted; False if the executor has been shut down.

        The lock is not held while the task is submitted: with `max_pending`, `submit` may wait for room, and
        the callbacks that make room may want to submit as well.
        """
        return self._lock.run(self._add, handle)

    def _add(self, handle: TaskHandle[Any]) -> bool:
        if not self.is_shut_down:
            self._handles.add(handle)
        return not self.is_shut_down

    def shut_down(self) -> list[TaskHandle[Any]]:
        """Take no more tasks; return those that have not ended, the latest first.

        In this order they are to be cancelled: then none of them begins in the place
        of one that is being stopped.
        """
        return self._lock.run(self._shut_down)

    def _shut_down(self) -> list[TaskHandle[Any]]:
        self.is_shut_down = True
        return sorted(self._handles.alive(), key=operator.attrgetter("task_id"), reverse=True)


class Pool(Protocol):
    """What an executor uses of its `TaskPool`."""

    _engine: Engine

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """Have a worker call ``fn(*args, **kwargs)``."""
        ...


class PoolExecutor(Executor):
    """What `TaskPool.executor` returns. Shutting it down waits for its own tasks; the pool is not affected.

    Safe from: any thread.
    """

    def __init__(self, pool: Pool, tasks: ExecutorTasks | None = None) -> None:
        self._pool = pool
        self._tasks = ExecutorTasks() if tasks is None else tasks

    @property
    def _max_workers(self) -> int:
        # Private in the standard library, but other libraries (dask, for one) read it from any executor.
        return self._pool._engine.options.processes

    @override
    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> TaskHandle[R]:
        """The same as `TaskPool.submit`.

        Raises:
            RuntimeError: After `shutdown`, or when the pool is closed.
        """
        if not self._tasks.is_shut_down:
            handle = self._pool.submit(fn, *args, **kwargs)
            if self._tasks.add(handle):
                return handle
            handle.cancel()
        raise RuntimeError("cannot schedule new futures after shutdown")

    @override
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        buffersize: int | None = None,
    ) -> Iterator[R]:
        """Call `fn` for each item, as `concurrent.futures.ProcessPoolExecutor.map`; iterate over the results.

        The results are in the order of the input. If the iteration ends early, tasks that have not begun are
        cancelled; running ones go on.

        Args:
            fn: What to call, with one argument from each iterable.
            iterables: Read at once, or with `buffersize` as results are taken.
            timeout: Seconds from now within which every result must be there; None: no limit.
            chunksize: Items per task.
            buffersize: The most tasks whose results have not been taken; None: no limit.

        Raises:
            ValueError: `chunksize` or `buffersize` is less than 1, or `timeout` is NaN.
            TypeError: `chunksize` or `buffersize` is not an integer, or `timeout` is not a number.
            WaitTimeout: From the iterator: the time has run out.
            Exception: From the iterator: what a call raised.

        Blocking: as `submit`. The iterator waits for results.
        """
        return map_in_order(self.submit, fn, iterables, timeout, chunksize, buffersize)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks.

        Args:
            wait: Return only when the tasks of this executor have ended. Ctrl-C (`KeyboardInterrupt`) cancels
                all of them, even if they are running.
            cancel_futures: Cancel the tasks that have not begun; running ones go on.

        Blocking: with `wait`, until the tasks of this executor have ended.
        """
        handles = self._tasks.shut_down()
        if cancel_futures:
            for handle in handles:
                handle._cancel_unless_begun()
        if wait:
            try:
                wait_for(handles)
            except KeyboardInterrupt:
                self.cancel_all()
                raise

    def cancel_all(self) -> None:
        """Take no more tasks, and cancel all that have not ended, even if they are running.

        Needed after Ctrl-C in a terminal: it reaches the workers too, but they leave it to the parent to
        decide about their tasks.
        """
        for handle in self._tasks.shut_down():
            handle.cancel()

    @override
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Shut down, and wait for the tasks; after Ctrl-C they are cancelled first."""
        if isinstance(error, KeyboardInterrupt):
            self.cancel_all()
        self.shutdown(wait=True)

    def __repr__(self) -> str:
        return f"<PoolExecutor {'shut down' if self._tasks.is_shut_down else 'open'} over {self._pool!r}>"


def map_in_order(
    submit: Callable[..., Future[Any]],
    fn: Callable[..., R],
    iterables: tuple[Iterable[Any], ...],
    timeout: float | None,
    chunksize: int,
    buffersize: int | None,
) -> Iterator[R]:
    """`Executor.map` over any function that submits tasks: see `PoolExecutor.map`."""
    chunksize = check_count(chunksize, "chunksize")
    if buffersize is not None:
        buffersize = check_count(buffersize, "buffersize")
    # A negative timeout has run out at once, as in the standard library.
    deadline = deadline_of(check_timeout(not_negative(timeout)))
    calls = zip(*iterables)  # noqa: B905  the shortest iterable ends it, as with the built-in map
    tasks: Iterator[Future[Any]]
    if chunksize == 1:
        tasks = (submit(fn, *arguments) for arguments in calls)
    else:
        chunks = iter(lambda: list(itertools.islice(calls, chunksize)), [])
        chunk = _Chunk(fn)
        tasks = (submit(chunk, arguments) for arguments in chunks)
    # Not lazily: tasks are submitted before the first result is asked for.
    pending = deque(itertools.islice(tasks, buffersize))
    if chunksize == 1:
        return _results(pending, tasks, deadline)
    return _each(_results(pending, tasks, deadline))


class _Chunk:
    """Calls a function for several items, as one task."""

    def __init__(self, fn: Callable[..., Any]) -> None:
        #: Named as in `functools.partial`, so that snapshots show the name of this function.
        self.func = fn

    def __call__(self, items: list[tuple[Any, ...]]) -> list[Any]:
        return [self.func(*item) for item in items]


# Neither of the next two functions refers to a result once it has been yielded: if the consumer drops it, it
# is freed, as with the standard library.


def _results(
    pending: deque[Future[Any]], tasks: Iterator[Future[Any]], deadline: float | None
) -> Generator[Any]:
    try:
        while pending:
            pending.extend(itertools.islice(tasks, 1))
            yield _result_of(pending, remaining(deadline))
    finally:
        for task in pending:
            _cancel_unless_begun(task)


def _result_of(pending: deque[Future[Any]], timeout: float | None) -> Any:
    try:
        return pending[0].result(timeout)
    finally:
        # Only has an effect on a task that has not ended in time.
        _cancel_unless_begun(pending.popleft())


def _each(chunks: Generator[list[Any]]) -> Iterator[Any]:
    with contextlib.closing(chunks):
        for chunk in chunks:
            chunk.reverse()
            while chunk:
                yield chunk.pop()


def _cancel_unless_begun(task: Future[Any]) -> None:
    # Any other future has ended already: it says that the arguments could not be pickled.
    if isinstance(task, TaskHandle):
        task._cancel_unless_begun()
