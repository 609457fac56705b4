"""The base of the public classes `BoundedQueue`, `Lock` and `LockedCounter`: handles to shared objects.

A handle can be pickled anywhere, and may arrive when its object no longer exists. All handles of one process
to the same object share one `SharedObject`.
"""

from __future__ import annotations

import operator
import pickle
from collections.abc import Iterator
from types import MemberDescriptorType
from typing import Any, ClassVar, Generic, NoReturn, TypeVar, cast

from mpkit._platform.hints import without_type_arguments
from mpkit._platform.messages import shown
from mpkit._shm.locks.shared_object import Lease, SharedObject
from mpkit.errors import HandleLost, SharedMemoryExhausted

S = TypeVar("S", bound=SharedObject)


class SharedHandle(Generic[S]):
    """A handle to a shared object.

    If a handle arrives in a process after the name of its object is gone, the message that contains it is
    unpickled nevertheless, and the handle raises the error when it is used.
    """

    __slots__ = ("__weakref__", "_lease", "_lost", "_name", "_shared")

    _shared_type: ClassVar[type[SharedObject]]

    def _begin(self, shared: S) -> None:
        """Bind the handle to `shared`, which has just been created for it."""
        self._lease: Lease | None = shared.lease()
        self._bind(shared)

    def _bind(self, shared: S) -> None:
        """Bind the handle to `shared`. Subclasses extend this, to have parts of it at hand."""
        self._name = shared.name
        self._shared: S | None = shared
        self._lost: HandleLost | SharedMemoryExhausted | None = None

    def _bind_nothing(self, name: str, reason: HandleLost | SharedMemoryExhausted) -> None:
        """The object could not be opened: every use raises `reason`."""
        self._name = name
        self._shared = None
        self._lease = None
        self._lost = reason

    def _opened(self) -> S:
        """The open object.

        Raises:
            HandleLost, SharedMemoryExhausted: It could not be opened when the handle arrived.
            ClosedError: This process has closed it.
        """
        shared = self._shared
        if shared is None:
            self._raise_lost()
        shared.check_open()
        return shared

    def _raise_lost(self, *_arguments: object) -> NoReturn:
        """Raise the reason why the object could not be opened; in place of the methods of that object."""
        lost = self._lost
        assert lost is not None
        # A copy each time: an exception that is raised repeatedly accumulates the frames of all callers.
        # (Not by the module `copy`: if there are no descriptors left, nothing can be imported.)
        raise pickle.loads(pickle.dumps(lost)) from lost.__cause__

    def close(self) -> None:
        """Close the object in this process. Calling it again does nothing.

        Every later use of any handle to it in this process raises `ClosedError`, and calls that wait in other
        threads end with `ClosedError`. The handles of other processes are not affected, nor are the items of
        a queue.

        Raises:
            RuntimeError: Called in the middle of an operation of the same thread (from a signal handler or a
                ``__del__``).

        Blocking: for at most 5 s, if another thread is in the middle of an operation that is held up by a
        stopped process.
        """
        if self._shared is not None:
            self._shared.close()

    def _state(self) -> str:
        """The state for `repr`: "lost", "closed", or "" while open."""
        if self._shared is None:
            return "lost"
        return "closed" if self._shared.closed else ""

    def __reduce__(self) -> tuple[Any, ...]:
        more = self._attributes()
        made = _arrive, (type(self), self._name, self._opened().mark_exported())
        return made if more is None else (*made, more)

    def _attributes(self) -> object:
        """The state that a user's subclass has added, in the form in which `object` would pickle it."""
        kind = type(self)
        own = getattr(kind, "__getstate__", None)
        if own is not None and own is not getattr(object, "__getstate__", None):
            return own(self)
        # Only subclasses have a dictionary.
        more = without_type_arguments(getattr(self, "__dict__", {})) or None
        slots = {name: getattr(self, name) for name in _derived_slots(kind) if hasattr(self, name)}
        return (more, slots) if slots else more


def _derived_slots(kind: type) -> Iterator[str]:
    """The slots that a user's subclasses have added."""
    for base in kind.__mro__:
        if "_shared_type" in vars(base):
            return
        yield from (name for name, value in vars(base).items() if isinstance(value, MemberDescriptorType))


def checked_integer(name: str, value: object) -> int:
    """An argument of a public method as an integer; `name` is used in the error message.

    Raises:
        TypeError: It is not an integer.
    """
    try:
        return operator.index(cast("Any", value))
    except TypeError:
        raise TypeError(f"{name} must be an integer, not {shown(value)}") from None


def _arrive(cls: type[SharedHandle[Any]], name: str, export: int) -> SharedHandle[Any]:
    """Unpickle a handle."""
    handle = cls.__new__(cls)
    try:
        shared, handle._lease = cls._shared_type.arrive(name, export)
    except (HandleLost, SharedMemoryExhausted) as error:
        # Without its traceback, which would keep alive the objects that are being unpickled.
        handle._bind_nothing(name, error.with_traceback(None))
    else:
        handle._bind(shared)
    return handle
