"""How the initializer of a pool and its arguments get to the workers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._engine.options import PoolOptions
from mpkit.pool._worker.worker import Initializer


def packed_initializer(options: PoolOptions) -> bytes | Initializer | None:
    """The initializer and its arguments for the workers: pickled if possible.

    Returns:
        The pickle; or the objects themselves if forked workers can only inherit them, or if they can be
        pickled only while a process is being started; or None if there is no initializer.

    Raises:
        SerializationError: they can neither be pickled nor inherited.
    """
    if options.initializer is None:
        return None
    call = (options.initializer, options.initargs)
    try:
        return codec.dumps(call, options.pickler)
    except SerializationError as error:
        if options.context.get_start_method() == "fork":
            # A forked worker inherits any object.
            return call
        # The locks, events and values of multiprocessing can be pickled only while a process is being
        # started; at other times they raise a RuntimeError.
        if isinstance(error.__cause__, RuntimeError):
            return cast("Initializer", _PickledAtStart(call, options.pickler))
        raise _blamed(error, call, options.pickler) from error.__cause__


class _PickledAtStart:
    """Is pickled while a worker is being started, and unpickled there as the `Initializer`."""

    def __init__(self, call: Initializer, pickler: Pickler) -> None:
        self._call = call
        self._pickler: Pickler = pickler

    def __reduce__(self) -> tuple[Callable[[bytes], Any], tuple[bytes]]:
        try:
            return codec.loads, (codec.dumps(self._call, self._pickler),)
        except SerializationError as error:
            raise _blamed(error, self._call, self._pickler) from error.__cause__


def _blamed(error: SerializationError, call: Initializer, pickler: Pickler) -> SerializationError:
    from mpkit.pool._engine.blame import blame, parts_of_initializer  # noqa: PLC0415  rarely needed

    return blame(error, parts_of_initializer(*call), pickler)
