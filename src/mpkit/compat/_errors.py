"""The errors that the standard library raises in place of mpkit's."""

from __future__ import annotations

import contextlib
from multiprocessing import pool as stdlib
from typing import TYPE_CHECKING, cast

from mpkit._wire.codec import ABOUT_RESULT, CANNOT_UNPICKLE
from mpkit._wire.failure import RemoteTraceback
from mpkit.errors import ClosedError, SerializationError

if TYPE_CHECKING:
    from collections.abc import Generator


class ClosedQueueError(ClosedError, OSError):
    """A queue was used after its `close()`, in a method in which the standard library raises an `OSError`.

    (There it is the error of the closed pipe. Some programs end their loops when they get it.)
    """


def original_error(error: SerializationError) -> BaseException:
    """The error that pickling itself has raised; `error` if that could not be sent here."""
    cause = error.__cause__
    if isinstance(cause, RemoteTraceback):
        cause = cause.__cause__
    return cause or error


@contextlib.contextmanager
def pool_errors() -> Generator[None]:
    """A block in which the errors of mpkit become those of `multiprocessing.Pool`."""
    try:
        yield
    except SerializationError as error:
        raised = pool_error(error)
        if raised is error:
            raise
        # If `raised` is the original error, it is the cause of `error`, and must
        # not have `error` as its cause.
        raise raised from (error if _comes_from_worker(error) else None)


def executor_error(error: BaseException | None) -> BaseException | None:
    """The error that an executor of the standard library raises in place of `error`."""
    if not isinstance(error, SerializationError):
        return error
    if _comes_from_worker(error) and not (_tells_of_outcome(error) or _tells_of_arguments(error)):
        return error
    return original_error(error)


def pool_error(error: BaseException) -> BaseException:
    """The error that `multiprocessing.Pool` raises in place of `error`."""
    if not isinstance(error, SerializationError):
        return error
    if not _comes_from_worker(error):
        return original_error(error)
    if not _tells_of_outcome(error):
        # The task itself has raised it; or its arguments cannot be unpickled, in which case a task of the
        # standard library never ends.
        return error
    # typeshed does not have this class.
    kind = cast("type[Exception]", vars(stdlib)["MaybeEncodingError"])
    return kind(original_error(error), _Described(_what_failed(error)))


def _comes_from_worker(error: SerializationError) -> bool:
    """Whether an error was raised in a worker, and not in this process."""
    return isinstance(error.__cause__, RemoteTraceback)


def _tells_of_outcome(error: SerializationError) -> bool:
    """Whether an error from a worker says that a result or an exception could not be sent."""
    text = str(error)
    return text.startswith(ABOUT_RESULT) or " cannot be sent: " in text or " cannot be sent here: " in text


def _tells_of_arguments(error: SerializationError) -> bool:
    """Whether an error from a worker says that the function or its arguments could not be unpickled."""
    return str(error).startswith(CANNOT_UNPICKLE)


def _what_failed(error: SerializationError) -> str:
    """What could not be pickled, according to the text of the error; the object itself is not here."""
    text = str(error)
    _, found, rest = text.partition("cannot pickle ")
    if found:
        return rest.partition(": ")[0]
    return text.partition(" was raised in process ")[0]


class _Described:
    """Stands for an object that could not leave its worker."""

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return f"<{self._text}>"
