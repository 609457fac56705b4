"""`get_context` and the contexts that it returns: those of `multiprocessing`, but with mpkit's classes."""

# The names are those of the standard library.
# ruff: noqa: N802
from __future__ import annotations

import multiprocessing
import multiprocessing.context as mp_context
import sys
from typing import TYPE_CHECKING, Any, ClassVar, Literal, overload

from mpkit.compat import _locks, _pool, _processes, _queues

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Context(mp_context.BaseContext):
    """A context of `multiprocessing`, but with mpkit's classes; everything else is inherited.

    `SimpleQueue` is inherited as well, and uses mpkit's `Lock`. It is not mpkit's own, because classes of the
    standard library that are given a context (`concurrent.futures.ProcessPoolExecutor`,
    `multiprocessing.pool.Pool`) wait at the pipe of such a queue, and mpkit's has none.
    """

    Process: ClassVar[type[_processes.Process]]
    # The base class returns this from `get_start_method`.
    _name: ClassVar[str]

    def Queue(self, maxsize: int = 0) -> _queues.Queue[Any]:
        """Create a `Queue`."""
        return _queues.Queue(maxsize)

    def JoinableQueue(self, maxsize: int = 0) -> _queues.JoinableQueue[Any]:
        """Create a `JoinableQueue`."""
        return _queues.JoinableQueue(maxsize)

    def Lock(self) -> _locks.Lock:
        """Create a `Lock`."""
        return _locks.Lock()

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> _pool.Pool:
        """Create a `Pool` whose workers are started with the start method of this context."""
        return _pool.Pool(processes, initializer, initargs, maxtasksperchild, self)

    def get_context(self, method: str | None = None) -> Context:  # type: ignore[override]
        """This context, or the one for another start method."""
        return self if method is None else get_context(method)


class SpawnContext(Context):
    """Processes start in a fresh interpreter."""

    _name = "spawn"
    Process: ClassVar[type[_processes.SpawnProcess]] = _processes.SpawnProcess  # pyright: ignore[reportIncompatibleVariableOverride]


_contexts: dict[str, Context] = {"spawn": SpawnContext()}

if sys.platform != "win32":

    class ForkContext(Context):
        """Processes are forked."""

        _name = "fork"
        Process: ClassVar[type[_processes.ForkProcess]] = _processes.ForkProcess  # pyright: ignore[reportIncompatibleVariableOverride]

    class ForkServerContext(Context):
        """Processes are forked by the fork server."""

        _name = "forkserver"
        Process: ClassVar[type[_processes.ForkServerProcess]] = _processes.ForkServerProcess  # pyright: ignore[reportIncompatibleVariableOverride]

    _contexts |= {"fork": ForkContext(), "forkserver": ForkServerContext()}


@overload
def get_context(method: Literal["spawn"]) -> SpawnContext: ...


if sys.platform != "win32":

    @overload
    def get_context(method: Literal["fork"]) -> ForkContext: ...
    @overload
    def get_context(method: Literal["forkserver"]) -> ForkServerContext: ...


@overload
def get_context(method: str | None = None) -> Context: ...
def get_context(method: str | None = None) -> Context:
    """A context: an object with the functions and classes of this module, bound to a start method.

    Args:
        method: The start method. None, the default: what the program has set, else the default of the running
            Python. This then becomes the start method of the program, as in the standard library.

    Raises:
        ValueError: This system has no such start method.
    """
    return _contexts[multiprocessing.get_context(method).get_start_method()]
