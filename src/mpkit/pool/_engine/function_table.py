"""The functions that a pool has been given lately, and how each gets to a worker."""

from __future__ import annotations

import contextlib
import functools
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.seen_shared import forget_seen_shared, pickles_for_tasks, seen_shared
from mpkit.pool._protocol.channel import BY_REFERENCE

_MOST_FUNCTIONS = 1024
#: `inspect.CO_COROUTINE`; that module takes longer to import than all of the pool's.
_CO_COROUTINE = 0x80
_WITH_CODE = (FunctionType, MethodType)


class FunctionTable:
    """What a pool knows of its functions: how long each takes, and the pickle of those that have a name."""

    def __init__(self) -> None:
        self._known: dict[Any, Function] = {}

    @pickles_for_tasks
    def look_up(self, fn: Any, pickler: Pickler) -> tuple[Function, bytes, int]:
        """How a worker gets a function: its statistics, its pickle and flags.

        Raises:
            TypeError: it cannot be called, or its call would only make a coroutine.
            SerializationError: it cannot be pickled.
        """
        if seen_shared:
            forget_seen_shared()
        by_name = _is_pickled_by_name(fn) and pickler == "pickle"
        # Each lambda is another object, and has the code of the one before it; what has no code, a name.
        key: Any = fn if by_name else _code_of(fn) or (type(fn), name_of(fn))
        known = self._known.get(key)
        if known is not None and by_name:
            return known, known.blob, BY_REFERENCE
        if known is None:
            _refuse_what_is_no_function(fn)
            if len(self._known) >= _MOST_FUNCTIONS:
                self._known.clear()
            known = Function(name_of(fn), codec.dumps(fn, pickler) if by_name else b"")
            self._known[key] = known
            if by_name:
                return known, known.blob, BY_REFERENCE
        return known, codec.dumps(fn, pickler), 0


def _refuse_what_is_no_function(fn: object) -> None:
    kind = type(fn)
    has_reducer = kind.__reduce__ is not object.__reduce__ or kind.__reduce_ex__ is not object.__reduce_ex__
    # With a reducer of its own it may be called where it arrives: what `TaskPool.share` returns, for one.
    if not callable(fn) and not has_reducer:
        raise TypeError(
            f"a task needs something to call; got {fn!r:.200} ({type(fn).__name__}). Pass the function "
            "itself and then its arguments, as in submit(f, 1), not in submit(f(1))"
        )
    called: object = fn
    while isinstance(called, functools.partial):
        called = called.func
    code = _code_of(called)
    if isinstance(code, CodeType) and code.co_flags & _CO_COROUTINE:
        raise TypeError(
            f"{name_of(fn)} is a coroutine function: calling it makes a coroutine, which cannot leave the "
            f"worker. Send a function that runs it, such as one that returns asyncio.run({name_of(fn)}(...))"
        )


def _is_pickled_by_name(fn: object) -> bool:
    kind = type(fn)
    if kind is FunctionType or kind is type:
        return True
    return kind is BuiltinFunctionType and isinstance(fn.__self__, ModuleType | None)  # type: ignore[attr-defined]


def _code_of(fn: object) -> object:
    """The code of a function or method; the attributes of anything else may be what they like."""
    return getattr(fn, "__code__", None) if isinstance(fn, _WITH_CODE) else None


def name_of(fn: object) -> str:
    """What messages call a function."""
    with contextlib.suppress(Exception):  # a proxy may raise anything where it has no such attribute
        for named in (fn, getattr(fn, "func", None)):
            # The functions of older versions of numpy have only the latter.
            name = getattr(named, "__qualname__", None) or getattr(named, "__name__", None)
            if name:
                return str(name)
    return type(fn).__qualname__
