"""Checks the arguments of `WorkerProcess` in its constructor, so that errors show where they are made.

The functions raise TypeError for a value of the wrong type, and ValueError for any other that is not allowed.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping
from typing import Any

from mpkit._platform.messages import shown

__all__ = ["check_group", "check_name", "check_target", "checked_args", "checked_kwargs", "checked_limit"]


def check_group(group: object) -> None:
    """`group` must be None, as for a thread."""
    if group is not None:
        raise ValueError(f"group must be None; got {shown(group)}")


def check_target(target: object) -> None:
    """`target` must be callable, or None."""
    if target is not None and not callable(target):
        raise TypeError(
            f"target must be callable, or None; got {shown(target)}. Pass the function itself, and its "
            "arguments as args: WorkerProcess(target=f, args=(1, 2)), or use WorkerProcess.call(f, 1, 2)"
        )


def check_name(name: object) -> None:
    """`name` must be a string, or None."""
    if name is not None and not isinstance(name, str):
        raise TypeError(f"name must be a string, or None; got {shown(name)}")


def checked_limit(limit: int | None) -> int | None:
    """The memory limit, a positive number of bytes; None: no limit."""
    if limit is None:
        return None
    try:
        number = operator.index(limit)
    except TypeError:
        raise TypeError(
            f"max_memory_bytes must be a whole number of bytes, or None; got {shown(limit)}"
        ) from None
    if number <= 0:
        raise ValueError(f"max_memory_bytes must be positive, or None for no limit; got {shown(limit)}")
    return number


def checked_args(args: Iterable[Any]) -> tuple[Any, ...]:
    """The positional arguments as a tuple."""
    try:
        return tuple(args)
    except TypeError:
        raise TypeError(f"args must be a tuple of arguments, such as args=(1,); got {shown(args)}") from None


def checked_kwargs(kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """A copy of the keyword arguments."""
    try:
        checked = dict(kwargs or {})
    except (TypeError, ValueError):
        raise TypeError(f"kwargs must map names to arguments, or be None; got {shown(kwargs)}") from None
    for name in checked:
        if not isinstance(name, str):
            raise TypeError(f"kwargs must have strings as keys; got {shown(name)}")
    return checked
