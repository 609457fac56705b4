"""Sends exceptions to another process, with the traceback of where they were raised.

Unlike results, they must arrive in any case. So the pickled exception, which the sender has unpickled on
trial, is sent inside a tuple of plain strings and bytes, which can always be unpickled.

An exception is pickled as its class and arguments, and unpickled by calling the class. Many classes cannot be
called with these arguments, or have an attribute that cannot be pickled (an open file, say). `_Bare` sends
such an exception without its unpicklable attributes, and rebuilds it without calling the constructor, so that
``except`` clauses still match.
"""

from __future__ import annotations

import builtins
import os
import traceback
from collections.abc import Callable, Iterable, Iterator
from types import MemberDescriptorType, MethodDescriptorType, TracebackType
from typing import Any, Final, cast

from mpkit._platform.hints import override
from mpkit._wire.codec import Pickler, class_name, contained, dumps, loads
from mpkit.errors import SerializationError

_State = dict[str, Any]

# The methods by which a class determines how its instances are pickled.
_HOOKS: Final = ("__reduce__", "__reduce_ex__", "__getstate__", "__setstate__")

_NOTE_HEADER: Final = "Traceback in process "

# Formatting collapses repeated frames, but a message can be of any length.
_MOST_CHARACTERS: Final = 200_000

_OWN_DIRECTORY: Final = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep


class RemoteTraceback(Exception):  # noqa: N818  named as the one of multiprocessing and concurrent.futures
    """The ``__cause__`` of an exception that comes from another process; shows the traceback from there.

    Args:
        text: The formatted traceback.
        pid: The pid of the process in which the exception was raised.

    Attributes:
        text: As given.
        pid: As given.
    """

    def __init__(self, text: str, pid: int) -> None:
        super().__init__(text, pid)
        self.text = text
        self.pid = pid

    @property
    def tb(self) -> str:
        """The same as `text`, under the name that it has in the standard library."""
        return self.text

    @override
    def __str__(self) -> str:
        return f'in process {self.pid}\n"""\n{self.text}"""'


def pack_exception(error: BaseException, pickler: Pickler = "pickle") -> bytes:
    """Pickle an exception together with its traceback as text. Never fails, except by KeyboardInterrupt.

    The pickle is unpickled here on trial, because many exceptions with a constructor of their own can be
    pickled but not unpickled. Such an exception is sent without calling its constructor, and without the
    attributes that cannot be pickled; a note names these. If this is not possible either, it arrives as a
    `SerializationError` with the text of its traceback. That concerns exceptions whose class cannot be found
    by its name, whose pickling hooks fail, or whose arguments cannot be pickled.
    """
    text = _formatted(error)
    payload: bytes | None = None
    reason = ""
    try:
        payload = dumps(error, pickler)
        restored = loads(payload)
        if not isinstance(restored, BaseException):
            payload, reason = None, f"it unpickles to an object of type {type(restored).__qualname__}"
    except KeyboardInterrupt:
        raise
    except BaseException as trouble:  # noqa: BLE001  foreign code, and whatever it raises must not get out of here
        payload, reason = _packed_bare(error, pickler), _one_line(trouble)
    return dumps((payload, class_name(type(error)), reason, text, os.getpid()))


def unpack_exception(data: bytes, *, contain: bool = False, refused: str = "") -> BaseException:
    """Unpickle what `pack_exception` has returned. Never fails, but see `contain`.

    Args:
        data: The bytes.
        contain: Whether unpickling must not end the caller: a SystemExit from it then counts as a failure;
            otherwise it is passed on (see `codec.contained`).
        refused: The reason why the exception itself must not be unpickled; "" if it may be.

    Returns:
        The exception, with its type and state. Its ``__cause__`` is a `RemoteTraceback`, and the same text is
        the last of its ``__notes__`` (shown from Python 3.11 on; on 3.10 an attribute like any other). If the
        exception had a cause before, that becomes the cause of the `RemoteTraceback`. An exception that
        cannot be sent is returned as a `SerializationError` with the same cause and note.
    """
    try:
        payload, name, reason, text, pid = cast("tuple[bytes | None, str, str, str, int]", loads(data))
    except (SerializationError, TypeError, ValueError) as trouble:
        damaged = SerializationError("an exception arrived damaged; what it was is not known")
        damaged.__cause__ = trouble
        return damaged
    error: BaseException | None = None
    reason = refused or reason
    if payload is not None and not refused:
        try:
            restored = contained(loads, payload) if contain else loads(payload)
        except Exception as trouble:  # noqa: BLE001  foreign code, and whatever it raises must not get out of here
            reason = _one_line(trouble)
        else:
            if isinstance(restored, BaseException):
                error = restored
            else:
                reason = f"it unpickles to an object of type {type(restored).__qualname__}"
    if error is None:
        error = SerializationError(
            f"{name} was raised in process {pid}, but the exception cannot be sent here: {reason}; give its "
            "class a __reduce__ that fits its constructor, and picklable attributes"
        )
    _attach(error, RemoteTraceback(text, pid))
    return error


def in_words(error: BaseException, most: int | None = None) -> str:
    """The name of the error's class, and its text. This works whatever the class does.

    Args:
        error: The error.
        most: The largest number of characters of the text; None: all.
    """
    try:
        text = str(error)[:most]
    except Exception:  # noqa: BLE001  foreign code
        text = "<no text>"
    return f"{type(error).__name__}: {text}".encode(errors="backslashreplace").decode()


# -- without the constructor ---------------------------------------------------------------------------------


class _Bare:
    """An exception as class, arguments and attributes. It unpickles to the exception itself.

    The class is pickled as any other: by name, or by value if cloudpickle is used and does so.
    """

    def __init__(
        self, kind: type[BaseException], args: tuple[Any, ...], state: _State, slots: _State
    ) -> None:
        self._parts = (kind, args, state, slots)

    @override
    def __reduce__(self) -> tuple[Callable[..., BaseException], tuple[Any, ...]]:
        return _rebuilt, self._parts


def _rebuilt(kind: type[BaseException], args: tuple[Any, ...], state: _State, slots: _State) -> BaseException:
    """Rebuild the exception of a `_Bare`, bypassing a `__setattr__` of its class."""
    error = kind.__new__(kind, *args)
    for name, value in slots.items():
        try:
            object.__setattr__(error, name, value)
        except AttributeError:
            # Read-only attributes have been set by `__new__`, from the arguments.
            continue
    # Some classes set `args` only in their constructor (subclasses of OSError with an `__init__` in Python).
    vars(BaseException)["args"].__set__(error, args)
    object.__getattribute__(error, "__dict__").update(state)
    return error


def _packed_bare(error: BaseException, pickler: Pickler) -> bytes | None:
    """`error` pickled as a `_Bare`; None if that is not possible, or its class has pickling hooks."""
    try:
        payload = dumps(_bare(error, pickler), pickler)
        return payload if type(loads(payload)) is type(error) else None
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  as in `pack_exception`, which knows the reason already
        return None


def _bare(error: BaseException, pickler: Pickler) -> _Bare:
    """The parts of `error` that can be pickled and unpickled.

    Raises:
        SerializationError: If its class has pickling hooks of its own; they have failed before.
    """
    kind = type(error)
    for hook in _HOOKS:
        if not isinstance(getattr(kind, hook, None), MethodDescriptorType | None):
            raise SerializationError(f"{class_name(kind)} has a {hook} of its own")
    args: tuple[Any, ...] = vars(BaseException)["args"].__get__(error)
    group: type[BaseException] | None = vars(builtins).get("BaseExceptionGroup")  # from Python 3.11 on
    if group is not None and isinstance(error, group):
        message, members = vars(group)["message"], vars(group)["exceptions"]
        args = (message.__get__(error), [_member(one, pickler) for one in members.__get__(error)])
    lost: list[str] = []
    state = _travelling(object.__getattribute__(error, "__dict__").items(), pickler, lost)
    slots = _travelling(_slots(error), pickler, lost)
    if lost:
        notes = state.get("__notes__")
        kept = cast("list[object]", notes) if isinstance(notes, list) else []
        state["__notes__"] = [*kept, f"some attributes could not travel: {', '.join(lost)}"]
    return _Bare(kind, args, state, slots)


def _member(error: BaseException, pickler: Pickler) -> BaseException | _Bare:
    """One exception of a group, in a form that can be pickled."""
    return error if _can_travel(error, pickler) else _bare(error, pickler)


def _slots(error: BaseException) -> Iterator[tuple[str, Any]]:
    """The attributes of `error` that are not in its dictionary: slots, and the `filename` of an OSError."""
    seen = set[str]()
    for kind in type(error).__mro__:
        for name, member in vars(kind).items():
            if name in seen or name.startswith("__"):
                continue
            seen.add(name)
            if not isinstance(member, MemberDescriptorType):
                continue
            # The exceptions of a group are among its arguments. The `obj` of an AttributeError may be
            # anything, and a plain pickle omits it, too.
            if kind.__module__ == "builtins" and name in {"exceptions", "obj"}:
                continue
            try:
                value = member.__get__(error)
            except AttributeError:
                continue  # never set
            # None is skipped: an OSError reads attributes that were never set as None, but prints them
            # differently once they have been set to None.
            if value is not None:
                yield name, value


def _travelling(attributes: Iterable[tuple[str, Any]], pickler: Pickler, lost: list[str]) -> _State:
    """Those attributes that can be pickled and unpickled; the names of the others are added to `lost`."""
    able: _State = {}
    for name, value in attributes:
        if _can_travel(value, pickler):
            able[name] = value
        else:
            lost.append(name)
    return able


def _can_travel(value: object, pickler: Pickler) -> bool:
    try:
        loads(dumps(value, pickler))
    except KeyboardInterrupt:
        raise
    except BaseException:  # noqa: BLE001  foreign code; a note names what could not be sent
        return False
    return True


# -- the traceback -------------------------------------------------------------------------------------------


def _attach(error: BaseException, remote: RemoteTraceback) -> None:
    # Not by plain access: the class may have a property of that name, a `__getattr__` that fails if an
    # attribute could not be sent, or a `__setattr__` (as frozen dataclasses have).
    of_base = vars(BaseException)["__cause__"]
    cause = of_base.__get__(error)
    if cause is not None and not isinstance(cause, RemoteTraceback):
        remote.__cause__ = cause
    of_base.__set__(error, remote)
    its: dict[str, Any] = object.__getattribute__(error, "__dict__")
    notes = its.get("__notes__")
    kept = _without_ours(cast("list[object]", notes)) if isinstance(notes, list) else []
    its["__notes__"] = [*kept, f"{_NOTE_HEADER}{remote.pid}:\n{remote.text}"]


def _without_ours(notes: list[object]) -> list[object]:
    """Notes without ours from an earlier sending: that traceback is part of the text of the new one."""
    return [note for note in notes if not (isinstance(note, str) and note.startswith(_NOTE_HEADER))]


def _formatted(error: BaseException) -> str:
    """The traceback of `error` as text, with causes and contexts. This works whatever the class does."""
    try:
        form = traceback.TracebackException(type(error), error, _without_own_frames(error.__traceback__))
        _drop_our_notes(form)
        text = "".join(form.format())
    except Exception as trouble:  # noqa: BLE001  __str__, __getattr__, __notes__ and the like are foreign code
        text = f"{class_name(type(error))} (its traceback cannot be shown: {_one_line(trouble)})\n"
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n... ({len(text) - 2 * half} characters left out) ...\n{text[-half:]}"
    # A message can contain a lone surrogate, which cannot be encoded.
    return text.encode(errors="backslashreplace").decode()


def _drop_our_notes(form: traceback.TracebackException) -> None:
    pending: list[traceback.TracebackException | None] = [form]
    seen = set[int]()
    while pending:
        one = pending.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        notes: object = getattr(one, "__notes__", None)
        if isinstance(notes, list):
            kept = _without_ours(cast("list[object]", notes))
            setattr(one, "__notes__", kept)  # noqa: B010  Python 3.10 has no such attribute
        pending += [one.__cause__, one.__context__, *(getattr(one, "exceptions", None) or ())]


def _without_own_frames(start: TracebackType | None) -> TracebackType | None:
    """The traceback from the first frame outside mpkit on: how mpkit called the function explains nothing."""
    here = start
    while here is not None and here.tb_frame.f_code.co_filename.startswith(_OWN_DIRECTORY):
        here = here.tb_next
    return here or start


def _one_line(trouble: BaseException) -> str:
    # For a SerializationError of the codec, its cause: the error itself is about sending, and its remedies.
    cause = trouble.__cause__ if isinstance(trouble, SerializationError) and trouble.__cause__ else trouble
    return in_words(cause, 1000)
