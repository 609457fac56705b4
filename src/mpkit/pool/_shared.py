"""An object that many tasks use: pickled once into shared memory, and mapped by the workers.

A `Shared` among the arguments of a task is pickled as the name of its file, and unpickled as the object
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

T = TypeVar("T")


class Shared(Generic[T]):
    """What `TaskPool.share` returns: a handle to pass to tasks, which receive the object itself.

    Buffers of 64 KiB and more that pickle protocol 5 can keep out of the pickle (those of numpy arrays, for
    example) are mapped read-only by all workers instead of copied. A worker unpickles the rest once for all
    of its tasks, so tasks must not change the object.

    `close`, the end of a ``with`` block, or dropping the last reference releases the object: its file is
    removed as soon as every task that was sent before has ended, and the memory is freed as soon as no worker
    has the file open. A worker closes it when it opens another shared object, between two tasks (at most
    twice a second), or within two seconds while it is idle.

    Attributes:
        nbytes: How many bytes of shared memory the object takes.

    Safe from: any thread.
    """

    def __init__(self, value: T, pickler: Pickler) -> None:
        self._blob: Blob | None = _dump(value, pickler)
        self._value: T | None = value
        self.nbytes: int = self._blob.size

    @property
    def value(self) -> T:
        """The object that was passed to `share`.

        Raises:
            ClosedError: After `close`.
        """
        # The value is read before `_blob`, because `close`, which another thread may call
        # meanwhile, clears `_blob` first.
        value = self._value
        if self._blob is None:
            raise ClosedError("this shared object has been closed")
        return value  # type: ignore[return-value]  # a T until it is closed

    def close(self) -> None:
        """Release the object; its memory is freed when the tasks that were sent
        before have ended (see above).

        After this, passing it to a task raises a `SerializationError`, caused by a `ClosedError`. May be
        called again. Never blocks.
        """
        # Tasks that need the file refer to it themselves.
        self._blob = None
        self._value = None

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        blob = self._blob
        if blob is None:
            raise ClosedError("this shared object has been closed")
        # The task must keep the memory until it has ended, even if the caller drops this object at once.
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
    """Pickle an object into a file; this keeps the files of other shared objects that the object contains."""
    forget_seen_shared()
    blob = payload.dump_shared(value, pickler)
    blob.needs = take_seen_shared()
    return blob
