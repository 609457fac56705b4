"""The functions that a pool has been given lately, and how they are pickled."""

from __future__ import annotations

import contextlib
import functools
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from mpkit._platform.messages import shown
from mpkit._wire import codec
from mpkit._wire.codec import Pickler
from mpkit.pool._engine.functions import Function
from mpkit.pool._engine.seen_shared import forget_seen_shared, pickles_for_tasks, seen_shared
from mpkit.pool._protocol.channel import BY_REFERENCE

#: When there are so many, the table is emptied.
_MOST_FUNCTIONS = 1024
#: `inspect.CO_COROUTINE`. (Importing `inspect` takes longer than importing all of the pool.)
_CO_COROUTINE = 0x80
_WITH_CODE = (FunctionType, MethodType)


class FunctionTable:
    """What a pool knows about functions: how long each takes, and the pickle of those pickled by name."""

    def __init__(self) -> None:
        self._known: dict[Any, Function] = {}

    @pickles_for_tasks
    def look_up(self, fn: Any, pickler: Pickler) -> tuple[Function, bytes, int]:
        """What is known about a function, the function as a pickle, and the flags for a task that calls it.

        Raises:
            TypeError: it is not callable, or is a coroutine function.
            SerializationError: it cannot be pickled.
        """
        if seen_shared:
            forget_seen_shared()
        by_name = _is_pickled_by_name(fn) and pickler == "pickle"
        # A lambda is a new object each time it is evaluated, but its code is the same. Other callables are
        # told apart by type and name.
        key: Any = fn if by_name else _code_of(fn) or (type(fn), name_of(fn))
        known = self._known.get(key)
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
    # An object with its own reducer may be unpickled as something callable: a
    # `Shared` that holds a function is.
    if not callable(fn) and not has_reducer:
        raise TypeError(
            f"a task needs something to call; got {shown(fn)} ({type(fn).__name__}). Pass the function "
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
    """The code of a function or method, else None: the `__code__` of another object may be anything."""
    return getattr(fn, "__code__", None) if isinstance(fn, _WITH_CODE) else None


def name_of(fn: object) -> str:
    """The name of a function in messages."""
    with contextlib.suppress(Exception):  # a proxy may raise anything instead of an AttributeError
        for named in (fn, getattr(fn, "func", None)):
            # The ufuncs of older versions of numpy have no `__qualname__`.
            name = getattr(named, "__qualname__", None) or getattr(named, "__name__", None)
            if name:
                return str(name)
    return type(fn).__qualname__
