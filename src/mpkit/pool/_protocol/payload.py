"""Arguments and outcomes as bytes: inside a record, or if they are big in a file of its own (*parcel*).

A parcel holds one pickle and the big buffers that pickle protocol 5 keeps out of it. Nothing leaks when a
side dies in between:

- from parent to worker, the parent owns the parcel until the task has ended; the worker maps it privately
  (copy on write), so a task that is sent a second time finds its arguments as they were;
- from worker to parent, the worker hands the ownership of the name over with the record. What a worker that
  died had created and not handed over is found by its name, which tells who made it
  (`mpkit._shm.locks.remains`); the names it had handed over are in its outbox.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import pickle
from typing import Any, cast

from mpkit._platform.files.descriptors import NO_LINK, NO_WAIT, NOT_INHERITED
from mpkit._platform.files.file_maps import map_privately, map_read_only
from mpkit._shm.memory import names
from mpkit._shm.memory.blob import Blob
from mpkit._shm.memory.segment import check_private, raise_refusal
from mpkit._shm.queues.ring import TornRingError
from mpkit._wire import codec, failure, frame
from mpkit._wire.codec import Pickler
from mpkit.errors import HandleLost, MpkitError, SerializationError
from mpkit.pool._protocol.channel import (
    BIG,
    BIG_ERROR,
    BIG_VALUE,
    ERROR,
    FUNCTION_INSIDE,
    HEAD_SIZE,
    KEYWORDS,
    PLAIN,
    RAISED,
    VALUE,
)

#: Longer payloads go into a parcel, so that a few of them do not fill a ring.
INLINE_BYTES = 16 << 10

# Without waiting: when the name is free again, anybody may give it to a named pipe.
_OPEN_FLAGS = os.O_RDONLY | NOT_INHERITED | NO_LINK | NO_WAIT

_encode = codec.Encoder(codec.DEFAULT_THRESHOLD).encode

_KIND = "parcel"
#: What a pickle ends with.
_STOP = ord(".")
#: Stands behind the pickle of a chunk's outcome if some of its items failed. Unpickling does not look there.
_SOME_FAILED = b"!"
#: How many parcels there have been; a worker that has made none has left none.
_made = 0


# -- arguments -----------------------------------------------------------------------------------------------


def dump_arguments(arguments: Any, pickler: Pickler, room: int) -> tuple[int, bytes, Blob | None]:
    """Pickle the arguments of a task: flags, bytes for the record, a parcel (the caller's) if they are big.

    Args:
        arguments: as `load_arguments` gives them back.
        pickler: which one.
        room: so many bytes the record has left for them.

    Raises:
        SerializationError: they cannot be pickled.
        SharedMemoryExhausted: there is no room for the parcel.
    """
    head, buffers = _encode(arguments) if pickler == "pickle" else codec.encode(arguments, pickler)
    if not buffers and len(head) <= min(room, INLINE_BYTES):
        return 0, head, None
    parcel = _pack(head, buffers)
    return BIG, parcel.name.encode(), parcel


def load_arguments(flags: int, data: bytes | memoryview) -> tuple[Any, Any]:
    """Positional and keyword arguments of a task, in the worker."""
    try:
        value = _decode(_map(bytes(data).decode())) if flags & BIG else codec.loads(data)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # as `codec.contained`, in line: it is on the path of each call
        raise codec.cannot_unpickle(error) from error
    if flags & KEYWORDS:
        return cast("tuple[Any, Any]", value)
    return value, None


def load_items(flags: int, data: bytes | memoryview) -> tuple[bytes, list[tuple[Any, Exception | None]]]:
    """The arguments of a chunk of which one cannot be unpickled: each item, or why it cannot.

    Returns:
        The pickled function, if it is there, and the items.
    """
    from mpkit._wire import salvage  # noqa: PLC0415  rarely needed

    head: Any = data
    buffers: list[Any] = []
    if flags & BIG:
        head, *buffers = _slices(_map(bytes(data).decode()))
    if not flags & FUNCTION_INSIDE:
        return b"", salvage.load_items(head, buffers, contain=True)
    return salvage.load_first(head), salvage.load_items(head, buffers, 1, contain=True)


# -- outcomes ------------------------------------------------------------------------------------------------


def dump_value(value: object, pickler: Pickler) -> tuple[int, bytes]:
    """Pickle what a task returned, and is not None: the kind of the outcome and its data.

    Raises:
        SerializationError: it cannot be pickled.
        SharedMemoryExhausted: there is no room for the parcel.
    """
    try:
        head, buffers = _encode(value) if pickler == "pickle" else codec.encode(value, pickler)
    except SerializationError as error:
        raise codec.about_result(error) from error.__cause__
    return _value_of(head, buffers)


def dump_chunk(results: list[Any], errors: list[tuple[int, bytes]], pickler: Pickler) -> tuple[int, bytes]:
    """The same for results of a chunk: a list, and what went wrong at which index of it."""
    value = (results, errors)
    head, buffers = _encode(value) if pickler == "pickle" else codec.encode(value, pickler)
    return _value_of(head + _SOME_FAILED if errors else head, buffers)


def _value_of(head: bytes, buffers: list[pickle.PickleBuffer]) -> tuple[int, bytes]:
    if not buffers and len(head) <= INLINE_BYTES:
        return VALUE, head
    return BIG_VALUE, _pack(head, buffers).hand_over().encode()


def dump_error(error: BaseException, pickler: Pickler) -> tuple[int, bytes]:
    """Pickle what a task raised."""
    data = failure.pack_exception(error, pickler)
    if len(data) <= INLINE_BYTES:
        return ERROR, data
    return BIG_ERROR, _pack(data, []).hand_over().encode()


def adopt(kind: int, record: bytes) -> tuple[int, object]:
    """Take over what came with an outcome, in the parent, at once: it belongs to whoever has the result now.

    Returns:
        Kind and data as `open_outcome` takes them.

    Raises:
        TornRingError: what stands there is no name of a parcel.
    """
    name = _parcel_in(record)
    try:
        return kind, _adopt_parcel(name)
    except (OSError, ValueError, MpkitError) as error:
        return RAISED, error


def open_outcome(kind: int, data: Any) -> tuple[Any, BaseException | None]:
    """The value or the exception of an outcome, for whoever asks for it: what is no `Exception` passes."""
    try:
        if kind == VALUE:
            return codec.loads(data[HEAD_SIZE:]), None
        if kind == BIG_VALUE:
            return _decode(data), None
    except Exception as error:  # noqa: BLE001  whatever unpickling raises concerns this caller alone
        return None, _fit_to_raise(error)
    if kind == ERROR:
        return None, unpack_error(data[HEAD_SIZE:])
    if kind == BIG_ERROR:
        return None, unpack_error(bytes(_slices(data)[0]))
    return (data, None) if kind == PLAIN else (None, data)


def unpack_error(packed: bytes) -> BaseException:
    """What a task, or an item of a chunk, has raised."""
    return _fit_to_raise(failure.unpack_exception(packed))


def _fit_to_raise(error: BaseException) -> BaseException:
    """A StopIteration becomes the cause of a RuntimeError, as in a generator (PEP 479).

    As it is, it would end the loop over the results that it comes from, and asyncio's futures refuse it: up
    to Python 3.12 whoever awaits one waits for ever.
    """
    if not isinstance(error, StopIteration):
        return error
    fit = RuntimeError("the function raised StopIteration")
    fit.__cause__ = error
    return fit


def open_items(kind: int, data: Any) -> list[tuple[Any, BaseException | None]]:
    """The results of a chunk that cannot all be unpickled: each of them, or why it cannot."""
    from mpkit._wire import salvage  # noqa: PLC0415  rarely needed

    head: Any = data[HEAD_SIZE:]
    buffers: list[Any] = []
    if kind == BIG_VALUE:
        head, *buffers = _slices(data)
    results: list[tuple[Any, BaseException | None]] = list(salvage.load_items(head, buffers, 0))
    for (index, packed), _ in salvage.load_items(head, (), 1):
        results[index] = (None, unpack_error(packed))
    return results


def has_failures(kind: int, data: Any) -> bool:
    """Whether a chunk, or an item of it, failed; nothing is unpickled to find out."""
    if kind == VALUE:
        return bool(data[-1] != _STOP)
    if kind == BIG_VALUE:
        # (A damaged one is found to be so by whoever asks for it.)
        with contextlib.suppress(SerializationError):
            return _slices(data)[0][-1:] != bytes([_STOP])
    return kind != PLAIN


def drop_outcome(kind: int, record: bytes) -> None:
    """Give back what came with an outcome that nobody wants."""
    if kind in (BIG_VALUE, BIG_ERROR):
        name = _parcel_in(record)
        with contextlib.suppress(OSError, ValueError, MpkitError):
            _adopt_parcel(name)


# -- shared objects ------------------------------------------------------------------------------------------


def dump_shared(value: object, pickler: Pickler) -> Blob:
    """A file with an object that many tasks use."""
    return _pack(*codec.encode(value, pickler))


def open_shared(name: str) -> object:
    """The object in a file that others use too: its buffers are read-only."""
    return _decode(_map(name, read_only=True))


# -- parcels -------------------------------------------------------------------------------------------------


def _pack(head: bytes, buffers: list[Any]) -> Blob:
    """A file with a pickle and its buffers (see `mpkit._wire.frame`)."""
    global _made
    _made += 1
    raws = [buffer.raw() for buffer in buffers]
    try:
        pieces, size = frame.lay_out(head, raws)
        return Blob.create(pieces, size, kind=_KIND)
    finally:
        for raw in raws:
            raw.release()
        for buffer in buffers:
            buffer.release()


def parcels_made() -> int:
    """How many parcels this process has made, or has begun to make."""
    return _made


def _parcel_in(record: bytes) -> str:
    """The parcel that a worker hands over: nothing else is ever opened here, and removed.

    Raises:
        TornRingError: it is no name of one.
    """
    folder, _, name = record[HEAD_SIZE:].rpartition(b"/")
    start, _, numbers = name.rpartition(f"{_KIND}-".encode())
    if start != names.PREFIX.encode() or b"\0" in folder or not numbers.replace(b"-", b"").isalnum():
        raise TornRingError
    return os.fsdecode(folder + b"/" + name)


def _adopt_parcel(name: str) -> mmap.mmap:
    """Map a parcel that another process has handed over, and remove its name."""
    names.own(name, "segment")
    try:
        return _map(name)
    finally:
        names.remove(name)


def _map(name: str, *, read_only: bool = False) -> mmap.mmap:
    """A private mapping (what is written into it is seen by nobody else), or a read-only one."""
    try:
        fd = os.open(name, _OPEN_FLAGS)
    except FileNotFoundError as error:
        raise HandleLost(
            f"the file {name!r} with the data of a task is gone: its creator has exited or released it",
            name=name,
        ) from error
    except OSError as error:
        raise_refusal(error)
    try:
        status = os.fstat(fd)
        check_private(name, status)
        return map_read_only(fd, status.st_size) if read_only else map_privately(fd, status.st_size)
    except OSError as error:
        raise_refusal(error)
    finally:
        os.close(fd)


def _decode(mm: mmap.mmap) -> object:
    head, *buffers = _slices(mm)
    return codec.decode(head, buffers)


def _slices(mm: mmap.mmap) -> list[memoryview]:
    """The pickle and its buffers. The mapping lives as long as the last of them."""
    return frame.take_apart(memoryview(mm))


__all__ = [
    "INLINE_BYTES",
    "adopt",
    "drop_outcome",
    "dump_arguments",
    "dump_chunk",
    "dump_error",
    "dump_shared",
    "dump_value",
    "has_failures",
    "load_arguments",
    "load_items",
    "open_items",
    "open_outcome",
    "open_shared",
    "parcels_made",
    "unpack_error",
]
