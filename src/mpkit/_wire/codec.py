"""Objects to bytes and back: pickle 5 with all that multiprocessing can pickle, as fast as plain pickle.

`multiprocessing.reduction.ForkingPickler` supports types that `pickle` does not (connections, sockets, and
those that third parties have registered), but for each object it copies two dictionaries and creates a
pickler, which costs more than pickling a small object. Here the merged table is created once, and picklers
are reused.

`Encoder` writes *plain* values (numbers, strings, bytes, and short tuples of them) with `marshal`, which
costs a fraction of a pickle. marshal would silently change other objects, such as instances of subclasses, so
only these exact types are plain. The first byte distinguishes the two: a pickle of protocol 2 or higher
begins with 0x80, which marshal never writes there.
"""

from __future__ import annotations

import copyreg
import importlib
import marshal
import pickle
import threading
import types
from collections import ChainMap
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeVar, cast

from mpkit._platform.messages import shown
from mpkit._platform.stdlib.passing import extra_reducers
from mpkit.errors import MpkitError, SerializationError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

P = ParamSpec("P")
R = TypeVar("R")

Pickler = Literal["pickle", "cloudpickle"]
"""The pickler to use: the standard library's, or cloudpickle, which supports lambdas and local functions."""

_PROTOCOL = 5

DEFAULT_THRESHOLD = 64 * 1024
"""`encode` keeps buffers of at least this many bytes out of band. Smaller ones are cheaper to copy."""

# Only picklers that have written little are reused: a pickler's memo never shrinks, and clearing it takes
# time in proportion to its size. Each object in the memo takes at least two bytes of output.
_RECYCLE_UP_TO_BYTES = 1024


class UnsendableError(TypeError):
    """The object being pickled cannot leave its process; the message tells what to send instead."""


def names_its_remedy(error: BaseException) -> bool:
    """Whether an error of pickling or unpickling is mpkit's own, and so already says what to do."""
    return isinstance(error, MpkitError | UnsendableError)


def check_pickler(pickler: str) -> Pickler:
    """Check the name of a pickler, and that it is installed.

    Raises:
        ValueError: If there is no pickler of that name.
        ImportError: If it is "cloudpickle", which is not installed.
    """
    if pickler == "pickle":
        return "pickle"
    if pickler == "cloudpickle":
        _cloudpickle()
        return "cloudpickle"
    raise ValueError(f"pickler must be 'pickle' or 'cloudpickle'; got {shown(pickler)}")


def dumps(obj: object, pickler: Pickler = "pickle") -> bytes:
    """Pickle `obj`, including its buffers.

    Args:
        obj: Anything that pickle, or multiprocessing, can pickle.
        pickler: Which pickler to use.

    Raises:
        SerializationError: If it cannot be pickled; the original error is the ``__cause__``.
        ImportError: If `pickler` is "cloudpickle", which is not installed.

    Safe from: several threads, and from within the ``__reduce__`` of an object that is being pickled.
    """
    encoder = _in_one_piece if pickler == "pickle" else Encoder(None, _cloud_pickler())
    return encoder.encode(obj)[0]


def loads(data: ReadableBuffer) -> Any:
    """Unpickle what `dumps`, or `encode` without buffers, has returned.

    An exception that is no `Exception` is passed on unchanged, because a signal handler may have raised it to
    end the program (SystemExit). `contained` is for callers that unpickling must not end.

    Raises:
        SerializationError: If it cannot be unpickled; the original error is the ``__cause__``.
    """
    try:
        if data[0] != _PICKLED:  # type: ignore[index]  # bytes, or a view of bytes
            return marshal.loads(data)  # noqa: S302  from this user's own processes, as the pickles are
        return pickle.loads(data)
    except Exception as error:
        raise cannot_unpickle(error) from error


def encode(obj: object, pickler: Pickler = "pickle") -> tuple[bytes, list[pickle.PickleBuffer]]:
    """Pickle `obj`, with its big buffers (of numpy arrays, say) out of band and not copied.

    Args:
        obj: Anything that pickle, or multiprocessing, can pickle.
        pickler: Which pickler to use.

    Returns:
        The pickle (the *head*), and the buffers in the order in which `decode` needs them. They refer to the
        memory of `obj`: copy them before it changes.

    Raises:
        SerializationError: If it cannot be pickled; the original error is the ``__cause__``.
        ImportError: If `pickler` is "cloudpickle", which is not installed.

    Safe from: several threads, and from within the ``__reduce__`` of an object that is being pickled.
    """
    encoder = _out_of_band if pickler == "pickle" else Encoder(DEFAULT_THRESHOLD, _cloud_pickler())
    return encoder.encode(obj)


def decode(head: ReadableBuffer, buffers: Iterable[ReadableBuffer | pickle.PickleBuffer] = ()) -> Any:
    """Unpickle what `encode` has returned. The object refers to `buffers`, which may be read-only.

    An exception that is no `Exception` is passed on unchanged: see `loads`.

    Raises:
        SerializationError: If it cannot be unpickled; the original error is the ``__cause__``.
    """
    try:
        if head[0] != _PICKLED:  # type: ignore[index]  # bytes, or a view of bytes
            return marshal.loads(head)  # noqa: S302  from this user's own processes, as the pickles are
        return pickle.loads(head, buffers=buffers)
    except Exception as error:
        raise cannot_unpickle(error) from error


def contained(load: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
    """Unpickle by calling ``load(*args, **kwargs)``, for a caller that must survive whatever arrives.

    (A worker, a child that is starting, or a thread of mpkit.)

    Raises:
        SerializationError: If it cannot be unpickled, and also if `load` raises SystemExit or any other
            BaseException. Only a KeyboardInterrupt in the main thread, that is Ctrl-C, is passed on.
    """
    try:
        return load(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        raise cannot_unpickle(error) from error


# -- picklers that are reused --------------------------------------------------------------------------------

_Reducer = Callable[[Any], Any]

_extra_reducers = extra_reducers()
_copyreg_reducers: dict[type[Any], _Reducer] = copyreg.dispatch_table


class _StandardPickler(pickle.Pickler):
    """The standard pickler with the reducers of multiprocessing."""

    # A plain dictionary, because a ChainMap would be slower: the C pickler looks into it for each instance.
    dispatch_table = {**_copyreg_reducers, **_extra_reducers}  # noqa: RUF012  the base class says what it is


class _Sink:
    """The file that a pickler writes to. It has no reference to the pickler, which would make a cycle."""

    __slots__ = ("_append", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._append = self.parts.append

    def write(self, data: bytes) -> None:
        """Called by the pickler.

        `data` may be a view that is valid only during this call (of a long bytearray, which another thread
        could resize afterwards), so that is copied.
        """
        self._append(data if type(data) is bytes else bytes(data))


# The parts of a pickler that `Encoder` uses: its `dump` and `clear_memo`, the list of the pieces that it has
# written, and the list of the buffers that it has left out.
_Writer = tuple[Callable[[object], None], Callable[[], None], list[bytes], list[pickle.PickleBuffer]]


def _writer(kind: type[pickle.Pickler], threshold: int | None) -> _Writer:
    sink = _Sink()
    buffers: list[pickle.PickleBuffer] = []

    def offer(buffer: pickle.PickleBuffer) -> bool:
        """Called by the pickler for each contiguous buffer; True: copy it into the head."""
        if buffer.raw().nbytes < cast("int", threshold):
            return True
        buffers.append(buffer)
        return False

    pickler = kind(sink, _PROTOCOL, buffer_callback=None if threshold is None else offer)
    return pickler.dump, pickler.clear_memo, sink.parts, buffers


class Encoder:
    """Encodes many objects in the same way; what does not depend on the object is prepared once.

    Args:
        threshold: Buffers of at least this many bytes are kept out of band; smaller ones are copied into the
            head. At most 64 KiB. None: all are copied.
        kind: The pickler class to use.

    Safe from: several threads, and from within the ``__reduce__`` of an object that is being pickled.
    """

    __slots__ = ("_kind", "_reducers_known", "_spare", "_threshold")

    # A pickler passes an in-band buffer of a frame's size (64 KiB) or more as a view that nothing keeps
    # alive.
    _LARGEST_THRESHOLD = 64 * 1024

    def __init__(self, threshold: int | None, kind: type[pickle.Pickler] = _StandardPickler) -> None:
        self._kind = kind
        self._threshold = None if threshold is None else min(threshold, self._LARGEST_THRESHOLD)
        self._reducers_known = -1
        self._spare: list[_Writer] = []

    def encode(self, obj: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
        """Encode `obj`; see the function `encode`."""
        kind = type(obj)  # pyright: ignore[reportUnknownVariableType]
        plain = kind in _ATOMS
        if kind is tuple and len(obj) <= _MOST_PARTS:
            for part in obj:
                if type(part) not in _ATOMS:
                    break
            else:
                plain = True
        if plain:
            version = _TEXT_VERSION if kind is str and len(obj) > _LONG_TEXT else _MARSHAL_VERSION
            try:
                return marshal.dumps(obj, version), _NO_BUFFERS
            except ValueError:
                # marshal does not accept two gigabytes or more.
                return pickle.dumps(obj, _PROTOCOL), _NO_BUFFERS
        if len(_extra_reducers) + len(_copyreg_reducers) != self._reducers_known:
            self._renew()
        spare = self._spare
        try:
            writer = spare.pop()
        except IndexError:
            writer = _writer(self._kind, self._threshold)
        dump, clear_memo, parts, buffers = writer
        try:
            dump(obj)
        except Exception as error:
            # The writer, which is in an unknown state now, is not reused.
            raise _cannot_pickle(obj, error) from error
        if len(parts) == 1:
            data = parts.pop()
        else:
            data = b"".join(parts)
            parts.clear()
        # The memo would keep `obj` alive.
        clear_memo()
        left_out = _NO_BUFFERS
        if buffers:
            left_out = buffers[:]
            buffers.clear()
        if len(data) <= _RECYCLE_UP_TO_BYTES:
            spare.append(writer)
        return data, left_out

    def _renew(self) -> None:
        """Merge the tables of reducers again, after new ones were registered, and drop the old picklers."""
        # Counted before merging and stored after it: another thread that sees the stored number also sees a
        # table with at least as many reducers.
        known = len(_extra_reducers) + len(_copyreg_reducers)
        _StandardPickler.dispatch_table = {**_copyreg_reducers, **_extra_reducers}
        self._spare = []
        # Changes are noticed by the count, because reducers are added, but hardly ever replaced.
        self._reducers_known = known


_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
#: Checking a longer tuple takes more time than marshal saves.
_MOST_PARTS = 8
#: This version keeps no table of references, which costs time and is of no use for plain values.
_MARSHAL_VERSION = 2
#: This version, for texts longer than `_LONG_TEXT`, copies ASCII text without encoding it.
_TEXT_VERSION = 4
_LONG_TEXT = 1000
#: The first byte of a pickle.
_PICKLED = 0x80
# Shared by all results without buffers; callers do not change it.
_NO_BUFFERS: list[pickle.PickleBuffer] = []


_in_one_piece = Encoder(None)
_out_of_band = Encoder(DEFAULT_THRESHOLD)

_cloud_pickler_class: type[pickle.Pickler] | None = None


def _cloudpickle() -> types.ModuleType:
    try:
        return importlib.import_module("cloudpickle")
    except ImportError as error:
        raise ImportError(
            "pickler='cloudpickle' needs the cloudpickle package: pip install 'mpkit[cloudpickle]'"
        ) from error


def _cloud_pickler() -> type[pickle.Pickler]:
    global _cloud_pickler_class
    if _cloud_pickler_class is None:
        base = _cloudpickle().Pickler
        table = ChainMap(cast("dict[type[Any], _Reducer]", _extra_reducers), base.dispatch_table)
        _cloud_pickler_class = type("_CloudPickler", (base,), {"dispatch_table": table})
    return _cloud_pickler_class


# -- wording -------------------------------------------------------------------------------------------------


#: The beginning of the messages of `cannot_unpickle`.
CANNOT_UNPICKLE: Final = "cannot unpickle what was received"
#: The beginning of the messages of `about_result`.
ABOUT_RESULT: Final = "the result: "


#: Texts in the messages of `pickle` about functions and classes that cannot be found by name (these differ
#: between Python 3.13 and 3.14).
_NOT_BY_THIS_NAME: Final = ("not the same object as", "attribute lookup", "not found as")


def _cannot_pickle(obj: object, error: Exception) -> Exception:
    if isinstance(error, SerializationError | MemoryError):
        # A SerializationError comes from an object inside that pickles something itself, and is more precise.
        return error
    text = str(error)
    if names_its_remedy(error):
        remedy = ""
    elif "inheritance" in text:
        remedy = "; hand it to a process when starting it, or use mpkit's queue, lock or counter"
    elif "<lambda>" in text or "<locals>" in text or "local object" in text:
        remedy = (
            "; define it at the top level of a module (in a decorator, use functools.wraps), or, for a pool, "
            "use pickler='cloudpickle'"
        )
    elif isinstance(error, RecursionError):
        remedy = "; it is nested too deeply; flatten it, or raise sys.setrecursionlimit()"
    elif "'generator'" in text:
        remedy = "; send a list of what it yields"
    elif any(words in text for words in _NOT_BY_THIS_NAME):
        remedy = (
            "; functions and classes are sent by name, which must mean this very object in its module; or, "
            "for a pool, use pickler='cloudpickle'"
        )
    elif type(obj) is types.MethodType:
        remedy = "; a method takes its object along: use a function, or a static method"
    else:
        remedy = "; send the data it is made from and build it there, or give its class a __reduce__"
    return SerializationError(f"cannot pickle {described(obj)}: {error_line(error)}{remedy}")


def cannot_unpickle(error: BaseException) -> Exception:
    """The error to raise when unpickling has raised `error`."""
    if isinstance(error, SerializationError | MemoryError):
        return error
    if names_its_remedy(error):
        remedy = ""
    elif isinstance(error, AttributeError | ImportError):
        remedy = "; what is sent must be importable by the same name on the other side"
        if "__main__" in str(error):
            remedy += (
                ", which functions of an interactive session, of `python -c` or of a __main__.py (`python -m "
                "package`, a directory, a zip file) are not: multiprocessing does not import those again. "
                "Put them into a module or, for a pool, use pickler='cloudpickle'"
            )
    else:
        remedy = "; check the __reduce__, __setstate__ or constructor of its class"
    return SerializationError(f"{CANNOT_UNPICKLE}: {error_line(error)}{remedy}")


def about_result(error: SerializationError) -> SerializationError:
    """The same error, but saying that it is about a result.

    Otherwise it could be mistaken for one about an argument, or for one that the task itself has raised.
    """
    return SerializationError(f"{ABOUT_RESULT}{error}")


def described(obj: object) -> str:
    """A short description of `obj`, made without running its code and without revealing its content."""
    # `type` instead of `isinstance`, which believes what an object says about itself (mocks and proxies lie).
    kind = type(obj)
    if issubclass(kind, types.MethodType):
        obj = cast("types.MethodType", obj).__func__
        kind = type(obj)
    if issubclass(kind, types.FunctionType | type):
        named = cast("type", obj)
        return f"{named.__module__}.{named.__qualname__}"
    return f"an object of type {class_name(kind)}"


def class_name(kind: type) -> str:
    """The name of a class, with its module unless it is a built-in one."""
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def error_line(error: BaseException) -> str:
    """The name of the error's class and its text, if it has one; only the text for an `UnsendableError`."""
    text = str(error)
    if isinstance(error, UnsendableError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
