"""Arguments and outcomes as bytes: inside a record or, if they are big, in a file of their own (a *parcel*).

A parcel holds one pickle, and the big buffers that pickle protocol 5 keeps out of it. Nothing leaks if either
side dies at any moment:

- Arguments: the parent owns the parcel until the task has ended. The worker maps it privately (copy on
  write), so if the task is sent again, its arguments are unchanged.
- Outcomes: with the record, the worker hands over the ownership of the file. If a worker dies, the parcels
  that it had created and not handed over are found by their names, which say who created them
  (`mpkit._shm.locks.remains`); those that it had handed over are found by the records in its outbox.
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

#: Longer pickles go into a parcel, so that a few of them do not fill a ring.
INLINE_BYTES = 16 << 10

# `NO_WAIT`, because once a name is free again, anything may have it: opening a named pipe would wait.
_OPEN_FLAGS = os.O_RDONLY | NOT_INHERITED | NO_LINK | NO_WAIT

_encode = codec.Encoder(codec.DEFAULT_THRESHOLD).encode

#: What the names of parcels contain.
_KIND = "parcel"
#: The last byte of every pickle.
_STOP = ord(".")
#: Is appended to the pickle of a chunk's outcome if some of its items failed. Unpickling ignores it.
_SOME_FAILED = b"!"
#: How many parcels this process has created.
_made = 0


# -- arguments -----------------------------------------------------------------------------------------------


def dump_arguments(arguments: Any, pickler: Pickler, room: int) -> tuple[int, bytes, Blob | None]:
    """Pickle the arguments of a task.

    Args:
        arguments: a tuple; with the flag `KEYWORDS` a tuple and a dictionary; of a chunk the items.
        pickler: how to pickle them.
        room: how many bytes may be put into the record.

    Returns:
        Flags for the task, the bytes for its record, and the parcel if they are big; the caller owns it.

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
    """Unpickle the arguments of a task, in the worker.

    Returns:
        With the flag `KEYWORDS` positional and keyword arguments. Otherwise what was pickled, and None.
    """
    try:
        value = _decode(_map(bytes(data).decode())) if flags & BIG else codec.loads(data)
    except (Exception, KeyboardInterrupt):
        raise
    except BaseException as error:  # as `codec.contained`, but in line: this is on the path of each call
        raise codec.cannot_unpickle(error) from error
    if flags & KEYWORDS:
        return cast("tuple[Any, Any]", value)
    return value, None


def load_items(flags: int, data: bytes | memoryview) -> tuple[bytes, list[tuple[Any, Exception | None]]]:
    """Unpickle the items of a chunk one by one, because they cannot be unpickled together.

    Returns:
        The pickled function if it is among the arguments, else empty; and for each item the item and None, or
        None and the error.
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
    """Pickle what a task returned, which is not None.

    Returns:
        The kind of the outcome, and its data.

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
    """Pickle the results of items of a chunk, and for those that failed the index in the list and the error.

    Returns:
        The kind of the outcome, and its data.
    """
    value = (results, errors)
    head, buffers = _encode(value) if pickler == "pickle" else codec.encode(value, pickler)
    return _value_of(head + _SOME_FAILED if errors else head, buffers)


def _value_of(head: bytes, buffers: list[pickle.PickleBuffer]) -> tuple[int, bytes]:
    if not buffers and len(head) <= INLINE_BYTES:
        return VALUE, head
    return BIG_VALUE, _pack(head, buffers).hand_over().encode()


def dump_error(error: BaseException, pickler: Pickler) -> tuple[int, bytes]:
    """Pickle what a task raised; returns the kind of the outcome, and its data."""
    data = failure.pack_exception(error, pickler)
    if len(data) <= INLINE_BYTES:
        return ERROR, data
    return BIG_ERROR, _pack(data, []).hand_over().encode()


def adopt(kind: int, record: bytes) -> tuple[int, object]:
    """In the parent: take over the parcel of an outcome (`BIG_VALUE` or `BIG_ERROR`), and remove its name.

    From then on the parcel lives as long as the returned data. To be called only once for each record.

    Returns:
        Kind and data for `open_outcome`.

    Raises:
        TornRingError: the record has no name of a parcel; something has written over it.
    """
    name = _parcel_in(record)
    try:
        return kind, _adopt_parcel(name)
    except (OSError, ValueError, MpkitError) as error:
        return RAISED, error


def open_outcome(kind: int, data: Any) -> tuple[Any, BaseException | None]:
    """Unpickle an outcome, in the thread of the program that asks for it.

    Returns:
        The value and None, or None and the exception. An `Exception` that unpickling raises is returned as
        well. Other exceptions (of a signal handler that comes meanwhile) are raised.
    """
    try:
        if kind == VALUE:
            return codec.loads(data[HEAD_SIZE:]), None
        if kind == BIG_VALUE:
            return _decode(data), None
    except Exception as error:  # noqa: BLE001  foreign code may raise anything
        return None, _fit_to_raise(error)
    if kind == ERROR:
        return None, unpack_error(data[HEAD_SIZE:])
    if kind == BIG_ERROR:
        return None, unpack_error(bytes(_slices(data)[0]))
    return (data, None) if kind == PLAIN else (None, data)


def unpack_error(packed: bytes) -> BaseException:
    """Unpickle what a task, or an item of a chunk, has raised."""
    return _fit_to_raise(failure.unpack_exception(packed))


def _fit_to_raise(error: BaseException) -> BaseException:
    """Replace a StopIteration by a RuntimeError with that as the cause, as in a generator (PEP 479).

    A StopIteration would end the loop over the results in which it is raised. And asyncio's futures refuse
    it: up to Python 3.12, a coroutine that awaits one waits for ever.
    """
    if not isinstance(error, StopIteration):
        return error
    fit = RuntimeError("the function raised StopIteration")
    fit.__cause__ = error
    return fit


def open_items(kind: int, data: Any) -> list[tuple[Any, BaseException | None]]:
    """Unpickle the results of a chunk one by one, because they cannot be unpickled together.

    Returns:
        For each item the result and None, or None and the error.
    """
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
    """Whether a chunk, or any item of it, has failed. Unpickles nothing."""
    if kind == VALUE:
        return bool(data[-1] != _STOP)
    if kind == BIG_VALUE:
        # If the parcel is damaged, the error is raised when it is unpickled.
        with contextlib.suppress(SerializationError):
            return _slices(data)[0][-1:] != bytes([_STOP])
    return kind != PLAIN


def drop_outcome(kind: int, record: bytes) -> None:
    """Remove the parcel of an outcome that is not wanted, if it has one."""
    if kind in (BIG_VALUE, BIG_ERROR):
        name = _parcel_in(record)
        with contextlib.suppress(OSError, ValueError, MpkitError):
            _adopt_parcel(name)


# -- shared objects ------------------------------------------------------------------------------------------


def dump_shared(value: object, pickler: Pickler) -> Blob:
    """Pickle an object that many tasks use into a file."""
    return _pack(*codec.encode(value, pickler))


def open_shared(name: str) -> object:
    """Unpickle such an object; its buffers are mapped read-only."""
    return _decode(_map(name, read_only=True))


# -- parcels -------------------------------------------------------------------------------------------------


def _pack(head: bytes, buffers: list[Any]) -> Blob:
    """Create a file with a pickle and its buffers (see `mpkit._wire.frame`), and release the buffers."""
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
    """How many parcels this process has created, or begun to create."""
    return _made


def _parcel_in(record: bytes) -> str:
    """The path of the parcel that a worker hands over. Checked, because the file is going to be removed.

    Raises:
        TornRingError: it is not the name of a parcel.
    """
    folder, _, name = record[HEAD_SIZE:].rpartition(b"/")
    start, _, numbers = name.rpartition(f"{_KIND}-".encode())
    if start != names.PREFIX.encode() or b"\0" in folder or not numbers.replace(b"-", b"").isalnum():
        raise TornRingError
    return os.fsdecode(folder + b"/" + name)


def _adopt_parcel(name: str) -> mmap.mmap:
    """Map a parcel that another process has handed over, and remove its name."""
    names.own(name, "shared_memory")
    try:
        return _map(name)
    finally:
        names.remove(name)


def _map(name: str, *, read_only: bool = False) -> mmap.mmap:
    """Map a file privately (what is written into the mapping is seen by nobody else), or read-only."""
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
    """The pickle in a mapped file, and its buffers. The mapping lives as long as any of them."""
    return frame.take_apart(memoryview(mm))
