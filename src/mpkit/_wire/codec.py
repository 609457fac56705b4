"""Objects to bytes and back: pickle 5 with all that multiprocessing can pickle, as fast as plain pickle.

`multiprocessing.reduction.ForkingPickler` knows types that `pickle` does not (connections, sockets, what
third parties have registered), but it copies two dictionaries and makes a pickler for each object, which
costs more than pickling a small one. Here the merged table is made once, and picklers are used again.

`Encoder` writes plain values (numbers, strings, and short tuples of them) with `marshal`, which costs a
fraction of a pickle. It knows their exact types only, so nothing but they may go that way. The first byte
tells which it is: a pickle of protocol 2 or higher begins with 0x80, which no value of marshal does.
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

from mpkit._platform.stdlib.passing import extra_reducers
from mpkit.errors import MpkitError, SerializationError

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = [
    "ABOUT_RESULT",
    "CANNOT_UNPICKLE",
    "DEFAULT_THRESHOLD",
    "Encoder",
    "Pickler",
    "UnsendableError",
    "about_result",
    "cannot_unpickle",
    "check_pickler",
    "contained",
    "decode",
    "described",
    "dumps",
    "encode",
    "error_line",
    "loads",
    "names_its_remedy",
]

P = ParamSpec("P")
R = TypeVar("R")

Pickler = Literal["pickle", "cloudpickle"]
"""Who pickles: the standard library's pickle, or cloudpickle, which knows lambdas and local functions too."""

PROTOCOL = 5

DEFAULT_THRESHOLD = 64 * 1024
"""From how many bytes on `encode` leaves a buffer out of band. Below, copying costs less than accounting."""

# A pickler's table of what it has met keeps the size it once had and is cleared in full each time, so only
# picklers that have dealt with little are used again. Each object met takes at least two bytes of output.
_RECYCLE_UP_TO_BYTES = 1024


class UnsendableError(TypeError):
    """What is being pickled belongs to its process; the message tells what to send instead."""


def names_its_remedy(error: BaseException) -> bool:
    """Whether an error that ended pickling or unpickling is mpkit's own, to which no advice need be added."""
    return isinstance(error, MpkitError | UnsendableError)


def check_pickler(pickler: str) -> Pickler:
    """Check the name of a pickler given by a caller, and that it is installed.

    Raises:
        ValueError: If there is none of that name.
        ImportError: If cloudpickle is asked for and not installed.
    """
    if pickler == "pickle":
        return "pickle"
    if pickler == "cloudpickle":
        _cloudpickle()
        return "cloudpickle"
    raise ValueError(f"pickler must be 'pickle' or 'cloudpickle'; got {pickler!r}")


def dumps(obj: object, pickler: Pickler = "pickle") -> bytes:
    """Pickle `obj`, all of it in one piece.

    Args:
        obj: Anything that pickle, or multiprocessing, can pickle.
        pickler: Who pickles.

    Raises:
        SerializationError: If it cannot be pickled; the original error is the ``__cause__``.
        ImportError: If cloudpickle is asked for and not installed.

    Safe from: several threads, and from within the ``__reduce__`` of what is being pickled.
    """
    encoder = _in_one_piece if pickler == "pickle" else Encoder(None, _cloud_pickler())
    return encoder.encode(obj)[0]


def loads(data: ReadableBuffer) -> Any:
    """Bring back what `dumps`, or `encode` without buffers, has made.

    What is no `Exception` passes: the handler of a signal may come in between, and want to end the program
    (SystemExit). For those whom it must not end there is `contained`.

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
    """Pickle `obj`, with its big buffers (of numpy arrays, say) left out of band and not copied.

    Args:
        obj: Anything that pickle, or multiprocessing, can pickle.
        pickler: Who pickles.

    Returns:
        The head, and the buffers in the order in which `decode` wants them. They look into the memory of
        `obj`: copy them before it changes.

    Raises:
        SerializationError: If it cannot be pickled; the original error is the ``__cause__``.
        ImportError: If cloudpickle is asked for and not installed.

    Safe from: several threads, and from within the ``__reduce__`` of what is being pickled.
    """
    encoder = _out_of_band if pickler == "pickle" else Encoder(DEFAULT_THRESHOLD, _cloud_pickler())
    return encoder.encode(obj)


def decode(head: ReadableBuffer, buffers: Iterable[ReadableBuffer | pickle.PickleBuffer] = ()) -> Any:
    """Bring back what `encode` has made. It looks into `buffers`, and cannot write to read-only ones.

    What is no `Exception` passes: see `loads`.

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
    """Call what unpickles for somebody whom what arrives must not end: a worker, a child that starts, a
    thread of ours.

    Raises:
        SerializationError: Also where `load` raises SystemExit, or anything else but Ctrl-C.
    """
    try:
        return load(*args, **kwargs)
    except Exception:
        raise
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and threading.current_thread() is threading.main_thread():
            raise
        raise cannot_unpickle(error) from error


# --- picklers that are used again -------------------------------------------------------------------------

_Reducer = Callable[[Any], Any]

_extra_reducers = extra_reducers()
_copyreg_reducers: dict[type[Any], _Reducer] = copyreg.dispatch_table


class _StandardPickler(pickle.Pickler):
    """The standard pickler with the reducers of multiprocessing."""

    # A plain dictionary: the C pickler looks into it for each object of a class, so a chain of tables would
    # cost.
    dispatch_table = {**_copyreg_reducers, **_extra_reducers}  # noqa: RUF012  the base class says what it is


class _Sink:
    """What a pickler writes to. It does not know the pickler: the two would keep each other alive."""

    __slots__ = ("_append", "parts")

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self._append = self.parts.append

    def write(self, data: bytes) -> None:
        """What the pickler calls; it may also pass a view of memory that lives only during this call.

        That of a long bytearray, say, which another thread could resize afterwards: hence the copy now.
        """
        self._append(data if type(data) is bytes else bytes(data))


# What is used of a pickler again and again: `dump`, `clear_memo`, the parts that it has written, and the
# buffers that it has left out.
_Writer = tuple[Callable[[object], None], Callable[[], None], list[bytes], list[pickle.PickleBuffer]]


def _writer(kind: type[pickle.Pickler], threshold: int | None) -> _Writer:
    sink = _Sink()
    buffers: list[pickle.PickleBuffer] = []

    def offer(buffer: pickle.PickleBuffer) -> bool:
        """What the pickler calls for each buffer that is contiguous; true means: copy it into the head."""
        if buffer.raw().nbytes < cast("int", threshold):
            return True
        buffers.append(buffer)
        return False

    pickler = kind(sink, PROTOCOL, buffer_callback=None if threshold is None else offer)
    return pickler.dump, pickler.clear_memo, sink.parts, buffers


class Encoder:
    """`encode` with everything settled that does not depend on the object; for those who encode often.

    Args:
        threshold: Buffers of at least this many bytes are left out of band, smaller ones are copied into the
            head; at most 64 KiB. None: all are copied.
        kind: The pickler to use.

    Safe from: several threads, and from within the ``__reduce__`` of what is being pickled.
    """

    __slots__ = ("_kind", "_reducers_known", "_spare", "_threshold")

    # An in-band buffer of a frame's size or more would be passed as a view that nothing keeps alive.
    _LARGEST_THRESHOLD = 64 * 1024

    def __init__(self, threshold: int | None, kind: type[pickle.Pickler] = _StandardPickler) -> None:
        self._kind = kind
        self._threshold = None if threshold is None else min(threshold, self._LARGEST_THRESHOLD)
        self._reducers_known = -1
        self._spare: list[_Writer] = []

    def encode(self, obj: Any) -> tuple[bytes, list[pickle.PickleBuffer]]:
        """Head and buffers of `obj`; see `encode`."""
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
                # Two gigabytes and more are too much for it.
                return pickle.dumps(obj, PROTOCOL), _NO_BUFFERS
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
            # Half way, a writer is in an unknown state: it is not used again.
            raise _cannot_pickle(obj, error) from error
        if len(parts) == 1:
            data = parts.pop()
        else:
            data = b"".join(parts)
            parts.clear()
        # The memory of what it has met would keep `obj` alive.
        clear_memo()
        left_out = _NO_BUFFERS
        if buffers:
            left_out = buffers[:]
            buffers.clear()
        if len(data) <= _RECYCLE_UP_TO_BYTES:
            spare.append(writer)
        return data, left_out

    def _renew(self) -> None:
        """Reducers have been registered: merge the tables anew, and drop the picklers with the old one."""
        # The number first, and said last: who finds it as it is, in another thread, finds the new table,
        # which may hold more already.
        known = len(_extra_reducers) + len(_copyreg_reducers)
        _StandardPickler.dispatch_table = {**_copyreg_reducers, **_extra_reducers}
        self._spare = []
        # By count: reducers are added, hardly ever replaced.
        self._reducers_known = known


_ATOMS = frozenset({int, float, str, bytes, bool, type(None)})
#: Longer tuples take longer to look through than marshal saves.
_MOST_PARTS = 8
#: Without the table of what has been met before, which costs and tells nothing about plain values.
_MARSHAL_VERSION = 2
#: The one that copies long texts as they are, if they are ASCII.
_TEXT_VERSION = 4
_LONG_TEXT = 1000
#: The first byte of a pickle.
_PICKLED = 0x80
# Nobody changes what he is given.
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


# --- wording ----------------------------------------------------------------------------------------------


#: How the errors of `cannot_unpickle` begin.
CANNOT_UNPICKLE: Final = "cannot unpickle what was received"
#: How those of `about_result` begin.
ABOUT_RESULT: Final = "the result: "


#: In what `pickle` says of functions and classes: up to Python 3.13, and since.
_NOT_BY_THIS_NAME: Final = ("not the same object as", "attribute lookup", "not found as")


def _cannot_pickle(obj: object, error: Exception) -> Exception:
    if isinstance(error, SerializationError | MemoryError):
        # The former comes from within: what is pickled holds a handle that pickles by itself, and says it
        # best.
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
    """What to raise where unpickling has raised `error`."""
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
    """The same about a result: else it might be taken for one about an argument, or for the task's own."""
    return SerializationError(f"{ABOUT_RESULT}{error}")


def described(obj: object) -> str:
    """A short name of `obj` that never runs its own code, and tells nothing of what is in it."""
    # By its type: `isinstance` believes what an object says of itself, as mocks and proxies do.
    kind = type(obj)
    if issubclass(kind, types.MethodType):
        obj = cast("types.MethodType", obj).__func__
        kind = type(obj)
    if issubclass(kind, types.FunctionType | type):
        named = cast("type", obj)
        return f"{named.__module__}.{named.__qualname__}"
    name = kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"
    return f"an object of type {name}"


def error_line(error: BaseException) -> str:
    """What kind of error it is, and its text; the text alone where that says it all."""
    return str(error) if isinstance(error, UnsendableError) else f"{type(error).__name__}: {error}"
