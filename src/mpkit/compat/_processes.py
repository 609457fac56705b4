"""`Process`: `mpkit.WorkerProcess` with the interface of `multiprocessing.Process`, for each start method."""

from __future__ import annotations

import multiprocessing
import sys
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, SupportsFloat, cast

from mpkit._platform.hints import override
from mpkit._platform.messages import shown
from mpkit._platform.stdlib.contexts import start_methods
from mpkit._platform.stdlib.preparation import chosen_start_method
from mpkit._platform.threads.deadlines import not_negative
from mpkit.errors import ClosedError
from mpkit.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from multiprocessing.process import BaseProcess

    from mpkit.pool import TaskPool
    from mpkit.process.handle import Handle


# The default that the standard library has; it changed with 3.14.
_NO_KEYWORDS: Mapping[str, Any] | None = None if sys.version_info >= (3, 14) else MappingProxyType({})


class _MisuseError(AssertionError, ValueError, RuntimeError):
    """A method was used wrongly: an AssertionError in the standard library, one of the others in mpkit."""


class Process(WorkerProcess[Any]):
    """As `multiprocessing.Process`. Started with the method that the program has set, or Python's default.

    It has everything that the class of the standard library has, and what `mpkit.WorkerProcess` adds: a
    result, orderly stopping, and an end together with the parent.

    Raises:
        AssertionError: `group` is not None; or, in its methods, the process has not been started, or this is
            not the process that created it. The error is also of the type that `mpkit.WorkerProcess` raises.
    """

    #: None: what the program has set, else the default of the running Python.
    _mpkit_always: ClassVar[str | None] = None

    def __init__(
        self,
        group: None = None,
        target: Callable[..., object] | None = None,
        name: str | None = None,
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = _NO_KEYWORDS,
        *,
        daemon: bool | None = None,
    ) -> None:
        if group is not None:
            raise _MisuseError(f"group must be None; got {shown(group)}")
        # As in the standard library, the start method is chosen by `start`, which
        # also raises pickling errors.
        super().__init__(group, target, None if name is None else str(name), args, kwargs, daemon=daemon)

    @override
    def _mpkit_default_method(self) -> str:
        return self._mpkit_always or default_start_method()

    @override
    def join(self, timeout: SupportsFloat | None = None) -> None:
        """Wait until the process has ended, `timeout` seconds at most; a negative number counts as 0."""
        super().join(not_negative(cast("float | None", timeout)))

    @override
    def _mpkit_require_created_here(self) -> None:
        try:
            super()._mpkit_require_created_here()
        except RuntimeError as error:
            raise _MisuseError(str(error)) from None

    @override
    def _mpkit_require_started(self) -> Handle:
        try:
            return super()._mpkit_require_started()
        except (ClosedError, _MisuseError):
            raise
        except ValueError as error:
            raise _MisuseError(str(error)) from None


class ForkProcess(Process):
    """A `Process` that is always forked."""

    _mpkit_always: ClassVar[str | None] = "fork"


class SpawnProcess(Process):
    """A `Process` that always starts in a fresh interpreter."""

    _mpkit_always: ClassVar[str | None] = "spawn"


class ForkServerProcess(Process):
    """A `Process` that is always forked by the fork server."""

    _mpkit_always: ClassVar[str | None] = "forkserver"


def default_start_method() -> str:
    """The method that the program has set, else the default of the running Python. Asking does not fix it."""
    return chosen_start_method() or start_methods()[0]


def worker_names(start_method: str, kind: str) -> str:
    """What the names of workers begin with in the standard library: the start method, then `kind`.

    These names appear in logs, and programs check them: ``"PoolWorker" in current_process().name``.
    """
    return ("ForkServer" if start_method == "forkserver" else start_method.capitalize()) + kind


def processes_of(pool: TaskPool) -> list[BaseProcess]:
    """The workers of a pool, as process objects of `multiprocessing`."""
    children = {process.pid: process for process in multiprocessing.active_children()}
    return [children[worker.pid] for worker in pool.workers() if worker.pid in children]
