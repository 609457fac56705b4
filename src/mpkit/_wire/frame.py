"""How a pickle and the buffers it has left out lie behind each other: the result of a process and the parcels
of a pool in a file, an item of a queue in its ring where there is no region for it.

From a place on that the file decides::

    how many buffers there are, and the length of the pickle     8 bytes each, little-endian
    the length of each buffer                                    likewise
    the pickle
    the buffers, each at a multiple of 64 bytes                  numpy and others like whole cache lines
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from mpkit.errors import SerializationError

__all__ = ["in_one_piece", "lay_out", "take_apart"]

_ALIGNMENT: Final = 64
_COUNTS: Final = struct.Struct("<QQ")


def lay_out(
    head: bytes, buffers: Sequence[memoryview], at: int = 0
) -> tuple[list[tuple[int, bytes | memoryview]], int]:
    """What is to be written where, and where the last of it ends; `at` is where it all begins.

    Args:
        head: the pickle.
        buffers: what it has left out, contiguous bytes.
        at: offset in the file.
    """
    lengths = [buffer.nbytes for buffer in buffers]
    front = struct.pack(f"<{2 + len(lengths)}Q", len(lengths), len(head), *lengths)
    pieces: list[tuple[int, bytes | memoryview]] = [(at, front), (at + len(front), head)]
    end = at + len(front) + len(head)
    for buffer, length in zip(buffers, lengths, strict=True):
        end = _aligned(end)
        pieces.append((end, buffer))
        end += length
    return pieces, end


def in_one_piece(head: bytes, buffers: Sequence[memoryview]) -> bytes:
    """A copy of all of it."""
    pieces, _ = lay_out(head, buffers)
    parts: list[bytes | memoryview] = []
    end = 0
    for at, piece in pieces:
        parts += (bytes(at - end), piece)
        end = at + len(piece)
    return b"".join(parts)


def take_apart(contents: memoryview, at: int = 0) -> list[memoryview]:
    """The pickle and its buffers, as views of what has been laid out at `at`.

    Raises:
        SerializationError: there is not as much as it says.
    """
    try:
        number, *lengths = _COUNTS.unpack_from(contents, at)
        at += _COUNTS.size
        lengths += struct.unpack_from(f"<{number}Q", contents, at)
    except struct.error as error:
        raise _damaged() from error
    at += 8 * number
    found: list[memoryview] = []
    for length in lengths:
        found.append(contents[at : at + length])
        if len(found[-1]) != length:
            raise _damaged()
        at = _aligned(at + length)
    return found


def _damaged() -> SerializationError:
    return SerializationError("what was received is damaged: there is less of it than it says")


def _aligned(at: int) -> int:
    return -(-at // _ALIGNMENT) * _ALIGNMENT
