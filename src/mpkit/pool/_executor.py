"""A real `concurrent.futures.Executor` over a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, wait
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar
from weakref import WeakSet

from mpkit._platform import seam
from mpkit._platform.hints import override
from mpkit.pool._handle import TaskHandle

if TYPE_CHECKING:
    from mpkit.pool._facade import TaskPool

__all__ = ["PoolExecutor"]

P = ParamSpec("P")
R = TypeVar("R")


class PoolExecutor(Executor):
    """What `TaskPool.executor` returns. Shutting it down waits for its own tasks; the pool stays as it is.

    Safe from: any thread.
    """

    def __init__(self, pool: TaskPool) -> None:
        self._pool = pool
        self._lock = seam.InterruptibleLock()
        self._handles: WeakSet[TaskHandle[Any]] = WeakSet()
        self.is_shut_down = False

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
        if not self.is_shut_down:
            # Not under the lock: with `max_pending` it waits for room, which callbacks may have to make that
            # want to submit as well.
            handle = self._pool.submit(fn, *args, **kwargs)
            if self._lock.run(self._add, handle):
                return handle
            handle.cancel()
        raise RuntimeError("cannot schedule new futures after shutdown")

    def _add(self, handle: TaskHandle[Any]) -> bool:
        if not self.is_shut_down:
            self._handles.add(handle)
        return not self.is_shut_down

    @override
    def map(
        self,
        fn: Callable[..., R],
        *iterables: Iterable[Any],
        timeout: float | None = None,
        chunksize: int = 1,
        **options: Any,
    ) -> Iterator[R]:
        """As `concurrent.futures.Executor.map`: the results in order; `chunksize` items make one task."""
        if chunksize == 1:
            return super().map(fn, *iterables, timeout=timeout, **options)
        if options.get("buffersize") is not None:
            options["buffersize"] = max(1, options["buffersize"] // chunksize)
        pieces = super().map(_Chunk(fn), _in_chunks(zip(*iterables), chunksize), timeout=timeout, **options)  # noqa: B905
        return (result for piece in pieces for result in piece)

    @override
    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Take no more tasks.

        Args:
            wait: Return only when the tasks of this executor have ended.
            cancel_futures: Cancel those that have not begun.
        """
        handles = self._lock.run(self._shut_down)
        if cancel_futures:
            for handle in handles:
                if not handle.running():
                    handle.cancel()
        if wait:
            _wait_for(handles)

    def _shut_down(self) -> list[TaskHandle[Any]]:
        self.is_shut_down = True
        return list(self._handles)

    def __repr__(self) -> str:
        return f"<PoolExecutor {'shut down' if self.is_shut_down else 'open'} over {self._pool!r}>"


class _Chunk:
    def __init__(self, fn: Callable[..., Any]) -> None:
        self._fn = fn

    def __call__(self, items: list[tuple[Any, ...]]) -> list[Any]:
        return [self._fn(*item) for item in items]


def _in_chunks(items: Iterator[tuple[Any, ...]], size: int) -> Iterator[list[tuple[Any, ...]]]:
    chunk: list[tuple[Any, ...]] = []
    for item in items:
        chunk.append(item)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _wait_for(handles: list[TaskHandle[Any]]) -> None:
    wait(handles)
