"""The functions that a pool has been given lately, and how each gets to a worker."""

from __future__ import annotations

from types import BuiltinFunctionType, FunctionType, ModuleType
from typing import Any

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.pool import _payload as payload
from mpkit.pool._channel import BY_REFERENCE
from mpkit.pool._functions import Function

_MOST_FUNCTIONS = 1024


class FunctionTable:
    """What a pool knows of its functions: how long each takes, and the pickle of those that have a name."""

    def __init__(self) -> None:
        self._known: dict[Any, Function] = {}

    @payload.pickles_for_tasks
    def look_up(self, fn: Any, pickler: Pickler) -> tuple[Function, bytes, int]:
        """How a worker gets a function: its statistics, its pickle and flags.

        Raises:
            SerializationError: it cannot be pickled.
        """
        if payload.seen_shared:
            # Of what was pickled for no task, or for one that could not be sent.
            payload.take_seen_shared()
        by_name = _is_pickled_by_name(fn) and pickler == "pickle"
        key: Any = (
            fn
            if by_name
            else getattr(fn, "__code__", None)
            or (type(fn), getattr(getattr(fn, "func", None), "__name__", ""))
        )
        known = self._known.get(key)
        if known is not None and by_name:
            return known, known.blob, BY_REFERENCE
        if known is None:
            if len(self._known) >= _MOST_FUNCTIONS:
                self._known.clear()
            known = Function(name_of(fn), codec.dumps(fn, pickler) if by_name else b"")
            self._known[key] = known
            if by_name:
                return known, known.blob, BY_REFERENCE
        return known, codec.dumps(fn, pickler), 0


def _is_pickled_by_name(fn: object) -> bool:
    kind = type(fn)
    if kind is FunctionType or kind is type:
        return True
    return kind is BuiltinFunctionType and isinstance(fn.__self__, ModuleType | None)  # type: ignore[attr-defined]


def name_of(fn: object) -> str:
    """What messages call a function."""
    name = getattr(fn, "__qualname__", None) or getattr(getattr(fn, "func", None), "__qualname__", None)
    return str(name or type(fn).__qualname__)
