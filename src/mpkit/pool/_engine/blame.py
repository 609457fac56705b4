"""Which argument of a task, which item of a map, or what of an initializer, it is that cannot be pickled."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._engine.function_table import name_of
from mpkit.pool._protocol.channel import KEYWORDS

#: What a message calls it, and the object.
Part = tuple[str, object]


def blame(error: SerializationError, parts: Iterable[Part], pickler: Pickler) -> SerializationError:
    """The error to raise when pickling all of `parts` has failed with `error`.

    Pickles them once more, one by one: slow, and foreign code again, but only now.
    """
    for what, value in parts:
        try:
            codec.dumps(value, pickler)
        except SerializationError as found:
            named = SerializationError(f"{what}: {found}")
            named.__cause__ = found.__cause__
            return named
    # It takes two of them (one pickles differently the second time, say).
    return error


def parts_of_task(function: str, arguments: Any, flags: int, first: int | None) -> Iterator[Part]:
    """What a task consists of.

    Args:
        function: its name.
        arguments: as they are given to `Submission.submit`.
        flags: likewise.
        first: the index of its first item in the input of a map; None for a single call.
    """
    if first is not None:
        # One item that is sent by itself is the only argument.
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
    """What a worker calls first."""
    yield "the initializer", initializer
    for number, value in enumerate(arguments, 1):
        yield f"argument {number} of the initializer {name_of(initializer)}", value
