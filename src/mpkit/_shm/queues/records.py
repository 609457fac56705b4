"""The format of the records of a queue, which is told by a flag in the word with the record's length.

- No flag: the pickle of one item.
- `BIG`: a big item in a region: the number of the region, the size of the item in bytes, then offset and
  length of the pickle and of each buffer in that region.
- `PACKED`: a big item for which no region was left: its pickle and buffers themselves (see
  `mpkit._wire.frame`).
- `PACK`: ``number of the first item << PACK_BITS | how many items``, then one pickle of all of them (see
  packs).

Numbers are 8-byte words in the machine's byte order (except in a frame).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Sequence
from typing import Final

BIG: Final = 1 << 48
PACKED: Final = 1 << 49
PACK: Final = 1 << 50
PACK_BITS: Final = 16

#: The parts of a big item begin at multiples of this: numpy and others prefer whole cache lines.
_PART_ALIGNMENT: Final = 64
_BYTE_ORDER: Final = sys.byteorder


def lay_out(head: bytes, buffers: Sequence[memoryview]) -> tuple[list[tuple[int, int]], int]:
    """Lay out the pickle and the buffers of a big item in its region.

    The buffers come first, because they must be aligned and the pickle need not be.

    Returns:
        Offset and length of the pickle, then of each buffer; and the size that the region needs.
    """
    offset = 0
    places: list[tuple[int, int]] = []
    for view in buffers:
        size = view.nbytes
        places.append((offset, size))
        offset += -(-max(size, 1) // _PART_ALIGNMENT) * _PART_ALIGNMENT
    return [(offset, len(head)), *places], offset + max(len(head), 1)


def big(region: int, places: Sequence[tuple[int, int]]) -> bytes:
    """The record of a big item in a region.

    Args:
        region: the number of the region.
        places: offset and length of each part, as `lay_out` has returned them.
    """
    numbers = [region, sum(size for _, size in places)]
    for place in places:
        numbers += place
    return struct.pack(f"={len(numbers)}Q", *numbers)


def big_region(record: bytes) -> int:
    """The region that a big item's record names."""
    return int.from_bytes(record[:8], _BYTE_ORDER)


def weight(record: bytes) -> int:
    """How much the big item that a record describes counts for `max_bytes`."""
    return weight_of(int.from_bytes(record[8:16], _BYTE_ORDER))


def weight_of(size: int) -> int:
    """How much an item of `size` bytes counts for `max_bytes`: what a record of that size would occupy."""
    return ((size + 15) >> 3) << 3


def big_places(record: bytes) -> tuple[tuple[int, int], ...]:
    """Offset and length of the pickle of the big item that a record describes, then of each buffer."""
    numbers = struct.unpack(f"={len(record) // 8}Q", record)
    return tuple(zip(numbers[2::2], numbers[3::2], strict=True))
