"""What a pool and its tasks can be told, checked where it is given."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from multiprocessing.context import BaseContext
from typing import Any, NamedTuple

from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._platform.threads.deadlines import check_seconds, check_timeout
from mpkit._wire import codec
from mpkit._wire.codec import Pickler

__all__ = ["DEFAULT_TASK_OPTIONS", "Pickler", "PoolOptions", "TaskOptions"]


class TaskOptions(NamedTuple):
    """What holds for the tasks of one view of a pool.

    Attributes:
        timeout: seconds that a task may run, or None.
        retries: how often it is sent again after its worker died.
        pickler: how function, arguments and outcome are pickled.
    """

    timeout: float | None = None
    retries: int = 0
    pickler: Pickler = "pickle"

    @staticmethod
    def checked(timeout: float | None, retries: int, pickler: Pickler) -> TaskOptions:
        """Options from what a caller gave.

        Raises:
            TypeError: something has the wrong type.
            ValueError: something is out of range.
        """
        timeout = check_timeout(timeout)
        if timeout == 0:
            raise ValueError(
                "timeout must be more than 0 seconds (a task takes some time), or None for no limit; got 0"
            )
        return TaskOptions(timeout, check_count(retries, "retries", least=0), codec.check_pickler(pickler))


DEFAULT_TASK_OPTIONS = TaskOptions()


class PoolOptions(NamedTuple):
    """How a pool is made; see `TaskPool` for the meaning.

    `worker_names` is for `mpkit.compat`: what the names of the workers begin with that are numbered among all
    children of the program. None: they have the name of the pool, and are numbered in it.
    """

    processes: int
    initializer: Callable[..., object] | None
    initargs: tuple[Any, ...]
    maxtasksperchild: int | None
    context: BaseContext
    max_memory_bytes: int | None
    grace_period: float
    max_pending: int | None
    pickler: Pickler
    name: str
    forward_logs: bool
    worker_names: str | None = None

    @staticmethod
    def checked(
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
    ) -> PoolOptions:
        """Options from what a caller gave.

        Raises:
            TypeError: something has the wrong type.
            ValueError: something is out of range.
        """
        if initializer is not None and not callable(initializer):
            raise TypeError(f"initializer must be callable or None; got {initializer!r}")
        if isinstance(initargs, str | bytes) or not isinstance(initargs, Iterable):
            raise TypeError(
                f"initargs must be a tuple of arguments; got {initargs!r} "
                f"(for a single one write ({initargs!r},))"
            )
        if name is not None and not isinstance(name, str):
            raise TypeError(f"name must be a string or None; got {name!r}")
        return PoolOptions(
            processes=_usable_cpus() if processes is None else check_count(processes, "processes"),
            initializer=initializer,
            initargs=tuple(initargs),
            maxtasksperchild=None
            if maxtasksperchild is None
            else check_count(maxtasksperchild, "maxtasksperchild"),
            context=resolve_context(context, name="context"),
            max_memory_bytes=None
            if max_memory_bytes is None
            else check_count(max_memory_bytes, "max_memory_bytes"),
            grace_period=check_seconds(grace_period, name="grace_period"),
            max_pending=None if max_pending is None else check_count(max_pending, "max_pending"),
            pickler=codec.check_pickler(pickler),
            name="TaskPool" if name is None else name,
            forward_logs=bool(forward_logs),
        )


def _usable_cpus() -> int:
    from mpkit._platform.resources.cpus import usable_cpus  # noqa: PLC0415  workers that import `TaskPool` never ask

    return usable_cpus()


def check_count(value: object, name: str, *, least: int = 1) -> int:
    """An int of at least `least`.

    Raises:
        TypeError: it is not an int.
        ValueError: it is too small.
    """
    index = getattr(type(value), "__index__", None)
    if index is None or isinstance(value, bool):
        raise TypeError(f"{name} must be an int; got {value!r} ({type(value).__name__})")
    number: int = index(value)
    if number < least:
        raise ValueError(f"{name} must be at least {least}; got {number}")
    return number


def check_chunksize(value: object) -> int:
    """A number of items in one task.

    Raises:
        TypeError: it is not an int.
        ValueError: it is too small.
    """
    try:
        return check_count(value, "chunksize")
    except TypeError as error:
        if not isinstance(value, Iterable):
            raise
        # An Executor and the built-in map take several.
        raise TypeError(
            f"{error}; a function of several arguments is called by starmap(func, zip(first, second)), or by "
            "pool.executor.map(func, first, second)"
        ) from None
