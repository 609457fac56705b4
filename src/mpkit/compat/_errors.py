"""What the standard library raises where mpkit raises a `SerializationError`."""

from __future__ import annotations

from mpkit._wire.failure import RemoteTraceback
from mpkit.errors import SerializationError

__all__ = ["comes_from_worker", "original_error", "what_failed"]


def comes_from_worker(error: SerializationError) -> bool:
    """Whether it was a worker that could not pickle (a result), and not this process (arguments)."""
    return isinstance(error.__cause__, RemoteTraceback)


def original_error(error: SerializationError) -> BaseException:
    """What pickle itself has raised; `error` where that could not travel."""
    cause = error.__cause__
    if isinstance(cause, RemoteTraceback):
        cause = cause.__cause__
    return cause or error


def what_failed(error: SerializationError) -> str:
    """What could not be pickled, as far as the text tells: its type; the object itself has gone."""
    text = str(error)
    _, found, rest = text.partition("cannot pickle ")
    if found:
        return rest.partition(": ")[0]
    return text.partition(" was raised in process ")[0]
