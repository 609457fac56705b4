"""Which argument of a task, or which item of a map, it is that cannot be pickled."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._channel import CHUNK, KEYWORDS


def blame(
    error: SerializationError, function: str, arguments: Any, flags: int, pickler: Pickler
) -> SerializationError:
    """The error to raise when pickling all of `arguments` has failed with `error`.

    Pickles them once more, one by one: slow, and foreign code again, but only now.
    """
    for what, value in _parts(arguments, flags):
        try:
            codec.dumps(value, pickler)
        except SerializationError as found:
            named = SerializationError(f"{what} {function}: {found}")
            named.__cause__ = found.__cause__
            return named
    # It takes two of them (one pickles differently the second time, say).
    return error


def _parts(arguments: Any, flags: int) -> Iterator[tuple[str, object]]:
    if flags & CHUNK:
        for item in cast("list[object]", arguments):
            yield "an item for", item
        return
    positional: tuple[object, ...] = arguments
    named: dict[str, object] = {}
    if flags & KEYWORDS:
        positional, named = arguments
    for number, value in enumerate(positional, 1):
        yield f"argument {number} of", value
    for name, value in named.items():
        yield f"argument {name!r} of", value
