"""How a worker runs a task: it unpickles and calls the function, and pickles the outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import (
    BY_REFERENCE,
    CHUNK,
    EACH,
    FUNCTION_INSIDE,
    HEAD_SIZE,
    KEYWORDS,
    NONE,
    RANGE,
    STAR,
)
from mpkit.pool._worker.chunks import Broken, ChunkRunner, Host, except_of_broken
from mpkit.pool._worker.fork import end_fork

#: How many unpickled functions a worker keeps.
_MOST_FUNCTIONS = 1024


class Calls:
    """Runs the tasks of one worker. Raises the exceptions of the functions, and those of pickling."""

    def __init__(self, host: Host, chunks: ChunkRunner) -> None:
        self._host = host
        self._chunks = chunks
        self._functions: dict[bytes, Callable[..., Any]] = {}

    def make(
        self, number: int, length: int, flags: int, record: bytes, pickler: Pickler
    ) -> tuple[int, bytes]:
        """Run a task.

        Args:
            number: The number of the task.
            length: How many bytes the pickled function takes in the record.
            flags: The flags of the task.
            record: The record of the task.
            pickler: How to pickle the outcome.

        Returns:
            Kind and data of the outcome.
        """
        start = HEAD_SIZE + length
        blob = record[HEAD_SIZE:start]
        if flags & (CHUNK | FUNCTION_INSIDE):
            return self._make_special(number, blob, flags, memoryview(record)[start:], pickler)
        function = self._functions.get(blob)
        if function is None:
            function = self._load_function(blob, flags)
        if len(record) == start:
            value = function()
        else:
            args, kwargs = payload.load_arguments(flags, memoryview(record)[start:])
            value = function(*args) if kwargs is None else function(*args, **kwargs)
        return self._outcome_of(value, pickler)

    def _outcome_of(self, value: object, pickler: Pickler) -> tuple[int, bytes]:
        """The outcome of a call that has returned. In a fork of the worker, the process ends here."""
        if self._host.forked:
            end_fork(None)
        return (NONE, b"") if value is None else payload.dump_value(value, pickler)

    def _make_special(
        self, number: int, blob: bytes, flags: int, rest: memoryview, pickler: Pickler
    ) -> tuple[int, bytes]:
        """Run a chunk, or a task whose function is among the arguments."""
        first = stop = 0
        if flags & CHUNK:
            first, stop = RANGE.unpack_from(rest)
            rest = rest[RANGE.size :]
        function: Any
        args: Any
        kwargs: Any = None
        try:
            if flags & FUNCTION_INSIDE:
                (blob, args), _ = payload.load_arguments(flags & ~KEYWORDS, rest)
            else:
                args, kwargs = payload.load_arguments(flags, rest)
        except SerializationError as error:
            if not flags & CHUNK:
                raise
            try:
                inside, items = payload.load_items(flags, rest)
            except Exception:  # noqa: BLE001  it cannot be seen where in the pickle each item is
                raise error from error.__cause__
            function = except_of_broken(self._function(inside or blob, flags))
            args = [item if reason is None else Broken(reason) for item, reason in items]
            if flags & STAR:
                args = [(item,) if type(item) is Broken else item for item in args]
        else:
            function = self._function(blob, flags)
            if flags & FUNCTION_INSIDE and flags & KEYWORDS:
                args, kwargs = args
        if flags & EACH:
            return self._chunks.run_each(function, args, number, first, stop, pickler)
        if flags & CHUNK:
            return self._chunks.run(function, args, number, flags, first, stop, pickler)
        value = function(*args) if kwargs is None else function(*args, **kwargs)
        return self._outcome_of(value, pickler)

    def _function(self, blob: bytes, flags: int) -> Callable[..., Any]:
        if flags & FUNCTION_INSIDE:
            return cast("Callable[..., Any]", codec.contained(codec.loads, blob))
        return self._functions.get(blob) or self._load_function(blob, flags)

    def _load_function(self, blob: bytes, flags: int) -> Callable[..., Any]:
        function: Callable[..., Any] = cast("Callable[..., Any]", codec.contained(codec.loads, blob))
        if flags & BY_REFERENCE:
            if len(self._functions) >= _MOST_FUNCTIONS:
                self._functions.clear()
            self._functions[blob] = function
        return function
