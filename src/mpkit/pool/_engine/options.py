"""The options of a pool and of its tasks, checked when they are given."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import Any, cast

from mpkit._platform.messages import shown
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._platform.threads.deadlines import check_seconds, check_timeout
from mpkit._wire import codec
from mpkit._wire.codec import Pickler


class TaskOptions:
    """The options of the tasks that one view of a pool submits.

    Args:
        timeout: seconds that a task may run, or None.
        retries: how often a task is sent again if its worker dies.
        pickler: how function, arguments and outcome are pickled.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.
        ImportError: `pickler` is "cloudpickle", and that package is not installed.
    """

    __slots__ = ("pickler", "retries", "timeout")

    def __init__(self, timeout: float | None = None, retries: int = 0, pickler: Pickler = "pickle") -> None:
        self.timeout: float | None = check_timeout(timeout)
        if self.timeout == 0:
            raise ValueError(
                "timeout must be more than 0 seconds (a task takes some time), or None for no limit; got 0"
            )
        self.retries: int = check_count(retries, "retries", least=0)
        self.pickler: Pickler = codec.check_pickler(pickler)


class PoolOptions:
    """The options of a pool; see `TaskPool` for their meaning.

    Raises:
        TypeError: an option has the wrong type.
        ValueError: an option is out of range.
        ImportError: `pickler` is "cloudpickle", and that package is not installed.
    """

    def __init__(
        self,
        processes: int | None,
        initializer: Callable[..., object] | None,
        initargs: Iterable[Any],
        maxtasksperchild: int | None,
        context: str | BaseContext | None,
        max_memory_bytes: int | None = None,
        grace_period: float = 1.0,
        max_pending: int | None = None,
        pickler: Pickler = "pickle",
        name: str | None = None,
        forward_logs: bool = True,
    ) -> None:
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None; got {shown(initializer)}")
        if isinstance(initargs, str | bytes) or not isinstance(initargs, Iterable):
            raise TypeError(
                f"initargs must be a tuple of arguments; got {shown(initargs)} "
                f"(for a single one write ({shown(initargs)},))"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None; got {shown(name)}")
        self.processes: int = _usable_cpus() if processes is None else check_count(processes, "processes")
        self.initializer: Callable[..., object] | None = initializer
        self.initargs: tuple[Any, ...] = tuple(initargs)
        self.maxtasksperchild: int | None = _count_or_none(maxtasksperchild, "maxtasksperchild")
        self.context: BaseContext = resolve_context(context, name="context")
        self.max_memory_bytes: int | None = _count_or_none(max_memory_bytes, "max_memory_bytes")
        self.grace_period: float = check_seconds(grace_period, name="grace_period")
        self.max_pending: int | None = _count_or_none(max_pending, "max_pending")
        self.pickler: Pickler = codec.check_pickler(pickler)
        self.name: str = "TaskPool" if name is None else name
        self.forward_logs: bool = bool(forward_logs)
        #: For `mpkit.compat`: what the names of the workers begin with; they are then numbered like all
        #: children of the program. None: their names begin with that of the pool, and
        #: they are numbered within it.
        self.worker_names: str | None = None


def _usable_cpus() -> int:
    from mpkit._platform.resources.cpus import usable_cpus  # noqa: PLC0415  workers that import `TaskPool` never ask

    return usable_cpus()


def _count_or_none(value: object, name: str) -> int | None:
    return None if value is None else check_count(value, name)


def check_count(value: object, name: str, *, least: int = 1) -> int:
    """Check that an argument is an integer of at least `least`, and return it as an int.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than `least`.
    """
    try:
        # An array of numpy has `__index__`, and raises this error as well.
        number = operator.index(cast("Any", None if type(value) is bool else value))
    except TypeError:
        raise TypeError(f"{name} must be an int; got {shown(value)} ({type(value).__name__})") from None
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {shown(number)}")
    return number


def check_chunksize(value: object) -> int:
    """Check a `chunksize`, and return it as an int.

    Raises:
        TypeError: it is not an integer.
        ValueError: it is less than 1.
    """
    try:
        return check_count(value, "chunksize")
    except TypeError as error:
        if not isinstance(value, Iterable):
            raise
        # `Executor.map` and the built-in map take several iterables: probably this is a second one.
        raise TypeError(
            f"{error}; a function of several arguments is called by starmap(func, zip(first, second)), or by "
            "pool.executor.map(func, first, second)"
        ) from None
