"""`get_context` and the contexts that it returns: those of `multiprocessing` with mpkit's classes in them."""

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
    """A context of `multiprocessing` with mpkit's classes in it; all else is inherited.

    `SimpleQueue` is inherited as well, with mpkit's `Lock` inside: where the standard library is given a
    context (`concurrent.futures.ProcessPoolExecutor`, `multiprocessing.pool.Pool`), it waits at the pipe of
    that queue, which mpkit's own does not have.
    """

    Process: ClassVar[type[_processes.Process]]
    # What `get_start_method` of the base class returns.
    _name: ClassVar[str]

    def Queue(self, maxsize: int = 0) -> _queues.Queue[Any]:
        """A `Queue`."""
        return _queues.Queue(maxsize)

    def JoinableQueue(self, maxsize: int = 0) -> _queues.JoinableQueue[Any]:
        """A `JoinableQueue`."""
        return _queues.JoinableQueue(maxsize)

    def Lock(self) -> _locks.Lock:
        """A `Lock`."""
        return _locks.Lock()

    def Pool(
        self,
        processes: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Iterable[Any] = (),
        maxtasksperchild: int | None = None,
    ) -> _pool.Pool:
        """A `Pool` whose workers are started in this context's way."""
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
    """A context: an object with the functions of this module, bound to a start method.

    Args:
        method: the start method. None, the default, settles on what the program has set, else on the
            default of the running Python, as in the standard library.

    Raises:
        ValueError: this system has no such start method.
    """
    return _contexts[multiprocessing.get_context(method).get_start_method()]
