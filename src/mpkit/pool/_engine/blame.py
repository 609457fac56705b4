"""Finds out which argument of a task, item of a map, or part of an initializer cannot be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._engine.function_table import name_of
from mpkit.pool._protocol.channel import KEYWORDS

#: The name of a part in messages, and the object.
Part = tuple[str, object]


def blame(error: SerializationError, parts: Iterable[Part], pickler: Pickler) -> SerializationError:
    """The error to raise when pickling all of `parts` has failed with `error`.

    It pickles them again, one by one. This is slow, and runs foreign code again, but
    happens only after an error.
    """
    for what, value in parts:
        try:
            codec.dumps(value, pickler)
        except SerializationError as found:
            named = SerializationError(f"{what}: {found}")
            named.__cause__ = found.__cause__
            return named
    # Each of them can be pickled by itself (perhaps because one is pickled differently the second time).
    return error


def parts_of_task(function: str, arguments: Any, flags: int, first: int | None) -> Iterator[Part]:
    """The arguments of a task, or its items.

    Args:
        function: the name of the function.
        arguments: as given to `Submission.submit`.
        flags: as given to `Submission.submit`.
        first: the index of its first item in the input of a map; None for a single call.
    """
    if first is not None:
        # Also right for an item that is sent by itself: it is the only argument.
        for index, item in enumerate(cast("Iterable[object]", arguments), first):
            yield f"the item at index {index} for {function}", item
        return
    positional: tuple[object, ...] = arguments
    named: dict[str, object] = {}
    if flags & KEYWORDS:
        positional, named = arguments
    for number, value in enumerate(positional, 1):
        yield f"argument {number} of {function}", value
    for name, value in named.items():
        yield f"argument {name!r} of {function}", value


def parts_of_initializer(initializer: Callable[..., object], arguments: tuple[object, ...]) -> Iterator[Part]:
    """The initializer and its arguments."""
    yield "the initializer", initializer
    for number, value in enumerate(arguments, 1):
        yield f"argument {number} of the initializer {name_of(initializer)}", value
