"""What the standard library raises where mpkit raises a `SerializationError`."""

from __future__ import annotations

import contextlib
from multiprocessing import pool as stdlib
from typing import TYPE_CHECKING, cast

from mpkit._wire.codec import ABOUT_RESULT, CANNOT_UNPICKLE
from mpkit._wire.failure import RemoteTraceback
from mpkit.errors import ClosedError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Generator

__all__ = ["ClosedQueueError", "executor_error", "original_error", "pool_error", "pool_errors"]


class ClosedQueueError(ClosedError, OSError):
    """A queue was used after its `close()`, where the standard library tells of the pipe that it has closed.

    Programs end their loops at this `OSError`.
    """


def original_error(error: SerializationError) -> BaseException:
    """What pickle itself has raised; `error` where that could not travel."""
    cause = error.__cause__
    if isinstance(cause, RemoteTraceback):
        cause = cause.__cause__
    return cause or error


@contextlib.contextmanager
def pool_errors() -> Generator[None]:
    """In this block, what mpkit raises becomes what `multiprocessing.Pool` raises."""
    try:
        yield
    except SerializationError as error:
        raised = pool_error(error)
        if raised is error:
            raise
        # The original error is a cause of this one, which so cannot be a cause of it.
        raise raised from (error if _comes_from_worker(error) else None)


def executor_error(error: BaseException | None) -> BaseException | None:
    """What an executor raises where mpkit has raised `error`."""
    if not isinstance(error, SerializationError):
        return error
    if _comes_from_worker(error) and not (_tells_of_outcome(error) or _tells_of_arguments(error)):
        return error
    return original_error(error)


def pool_error(error: BaseException) -> BaseException:
    """What `multiprocessing.Pool` raises where mpkit has raised `error`."""
    if not isinstance(error, SerializationError):
        return error
    if not _comes_from_worker(error):
        return original_error(error)
    if not _tells_of_outcome(error):
        # The task's own, or its arguments: where those cannot be unpickled, the standard library never ends.
        return error
    # typeshed does not know it.
    kind = cast("type[Exception]", vars(stdlib)["MaybeEncodingError"])
    return kind(original_error(error), _Described(_what_failed(error)))


def _comes_from_worker(error: SerializationError) -> bool:
    """Whether it was raised in a worker, and not in this process."""
    return isinstance(error.__cause__, RemoteTraceback)


def _tells_of_outcome(error: SerializationError) -> bool:
    """Of those from a worker: whether a result or an exception could not be sent."""
    text = str(error)
    return text.startswith(ABOUT_RESULT) or " cannot be sent: " in text or " cannot be sent here: " in text


def _tells_of_arguments(error: SerializationError) -> bool:
    """Of those from a worker: whether the function or its arguments could not be unpickled."""
    return str(error).startswith(CANNOT_UNPICKLE)


def _what_failed(error: SerializationError) -> str:
    """What could not be pickled, as far as the text tells: its type; the object itself has gone."""
    text = str(error)
    _, found, rest = text.partition("cannot pickle ")
    if found:
        return rest.partition(": ")[0]
    return text.partition(" was raised in process ")[0]


class _Described:
    """Stands for an object that has remained in its worker."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<{self._text}>"
