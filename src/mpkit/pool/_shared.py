"""An object that many tasks use: pickled once into shared memory, mapped by the workers.

A `Shared` among the arguments of a task is pickled as the name of its file; unpickling gives the object
itself. So it works at any depth of any container, and the function never sees a wrapper.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from mpkit._platform.hints import Self
from mpkit._shm.memory.blob import Blob
from mpkit._wire.codec import Pickler
from mpkit.errors import ClosedError
from mpkit.pool._engine.seen_shared import (
    forget_seen_shared,
    note_shared,
    pickles_for_tasks,
    take_seen_shared,
)
from mpkit.pool._protocol import payload
from mpkit.pool._worker.opened import open_shared

__all__ = ["Shared"]

T = TypeVar("T")


class Shared(Generic[T]):
    """What `TaskPool.share` returns: a handle to pass to tasks, which receive the object itself.

    Buffers of 64 KiB and more that pickle can leave out (of numpy arrays, for example) are mapped read-only
    by all workers instead of copied. A worker unpickles the rest once for all its tasks, which must not
    change it.

    `close`, the end of a ``with`` block, or dropping the last reference releases it: the file is removed as
    soon as every task that was sent before has ended, and the memory is freed as soon as no worker has it
    open. A worker checks that when it opens another shared object, between two tasks (at most twice a
    second), and every two seconds while it is idle.

    Attributes:
        nbytes: How much shared memory it takes.

    Safe from: any thread.
    """

    def __init__(self, value: T, pickler: Pickler) -> None:
        self._blob: Blob | None = _dump(value, pickler)
        self._value: T | None = value
        self.nbytes: int = self._blob.size

    @property
    def value(self) -> T:
        """The object, as it was given.

        Raises:
            ClosedError: After `close`.
        """
        # In this order, the reverse of that in `close`: another thread may close it meanwhile.
        value = self._value
        if self._blob is None:
            raise ClosedError("this shared object has been closed")
        return value  # type: ignore[return-value]  # a T until it is closed

    def close(self) -> None:
        """Release it: the file and the memory are freed after the last of the tasks that were sent before
        (see above). Passing it to a task after this raises a `SerializationError`, caused by a `ClosedError`.
        """
        # The tasks that need it keep it.
        self._blob = None
        self._value = None

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        blob = self._blob
        if blob is None:
            raise ClosedError("this shared object has been closed")
        # The task must keep the memory until it has ended, also if the caller drops this object right away.
        note_shared(blob)
        return open_shared, (blob.name,)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._blob is None else f"{type(self._value).__name__}, {self.nbytes} bytes"
        return f"<Shared {state}>"


@pickles_for_tasks
def _dump(value: object, pickler: Pickler) -> Blob:
    """Its file, which keeps those of other shared objects in it."""
    forget_seen_shared()
    blob = payload.dump_shared(value, pickler)
    blob.needs = take_seen_shared()
    return blob
