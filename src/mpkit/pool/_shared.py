"""An object that many tasks use: pickled once into shared memory, mapped by the workers.

A `Shared` among the arguments of a task is pickled as the name of its file; unpickling gives the object
itself. So it works at any depth of any container, and the function never sees a wrapper.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, TypeVar

from mpkit._platform import seam
from mpkit._platform.hints import Self
from mpkit._shm.blob import Blob
from mpkit.errors import ClosedError
from mpkit.pool import _payload as payload
from mpkit.pool._options import Pickler

__all__ = ["Shared"]

T = TypeVar("T")

#: Shared objects that a worker keeps open.
_MOST_OPEN = 16

_opened: OrderedDict[str, Any] = OrderedDict()
_opened_lock = seam.InterruptibleLock()
_NOT_OPEN = object()


class Shared(Generic[T]):
    """What `TaskPool.share` returns: a handle to give to tasks, which receive the object itself.

    Buffers of 64 KiB and more that pickle can leave out (of numpy arrays, say) are mapped read-only by all
    workers instead of copied. A worker unpickles the rest once for all its tasks, which must not change it.
    The memory is freed by `close`, at the end of a ``with`` block, or with the last reference; a task under
    way keeps it until it has ended.

    Attributes:
        nbytes: How much shared memory it takes.

    Safe from: any thread.
    """

    def __init__(self, value: T, pickler: Pickler) -> None:
        self._blob: Blob | None = payload.dump_shared(value, pickler)
        self._value: T | None = value
        self.nbytes: int = self._blob.size

    @property
    def value(self) -> T:
        """The object, as it was given.

        Raises:
            ClosedError: After `close`.
        """
        if self._blob is None:
            raise ClosedError("this shared object has been closed")
        return self._value  # type: ignore[return-value]  # a T until it is closed

    def close(self) -> None:
        """Free the memory. Tasks sent earlier that have not opened it yet fail with `HandleLost`."""
        blob, self._blob, self._value = self._blob, None, None
        if blob is not None:
            blob.close()

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        blob = self._blob
        if blob is None:
            raise ClosedError("this shared object has been closed")
        # The task must keep the memory until it has ended, also if the caller drops this object right away.
        payload.note_shared(blob)
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


def open_shared(name: str) -> Any:
    """In a worker: the object behind a name."""
    value = _opened_lock.run(_find, name)
    if value is _NOT_OPEN:
        value = payload.open_shared(name)
        _opened_lock.run(_keep, name, value)
    return value


def _find(name: str) -> Any:
    if name not in _opened:
        return _NOT_OPEN
    _opened.move_to_end(name)
    return _opened[name]


def _keep(name: str, value: Any) -> None:
    _opened[name] = value
    while len(_opened) > _MOST_OPEN:
        _opened.popitem(last=False)
