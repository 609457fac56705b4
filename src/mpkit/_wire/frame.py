"""The layout of a pickle and its out-of-band buffers, one behind the other.

It is used for the result of a process and the parcels of a pool, in a file; and for an item of a queue, in
the ring, if there is no region for it. From an offset on that the file determines::

    the number of buffers, and the length of the pickle     8 bytes each, little-endian
    the length of each buffer                               likewise
    the pickle
    the buffers, each at a multiple of 64 bytes             numpy and others prefer whole cache lines
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import Final

from mpkit.errors import SerializationError

_ALIGNMENT: Final = 64
_COUNTS: Final = struct.Struct("<QQ")


def lay_out(
    head: bytes, buffers: Sequence[memoryview], at: int = 0
) -> tuple[list[tuple[int, bytes | memoryview]], int]:
    """Lay out a pickle and its buffers from the offset `at` on.

    Args:
        head: the pickle.
        buffers: the out-of-band buffers, contiguous.
        at: offset in the file.

    Returns:
        The offset and bytes of each piece to be written; and the offset at which the last one ends.
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
    """A copy of a pickle and its buffers, laid out from offset 0 on."""
    pieces, _ = lay_out(head, buffers)
    parts: list[bytes | memoryview] = []
    end = 0
    for at, piece in pieces:
        parts += (bytes(at - end), piece)
        end = at + len(piece)
    return b"".join(parts)


def take_apart(contents: memoryview, at: int = 0) -> list[memoryview]:
    """The pickle and its buffers, as views into `contents`, where they have been laid out from `at` on.

    Raises:
        SerializationError: `contents` ends too early.
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
