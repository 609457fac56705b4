"""What the records of a queue look like: an item's pickle as it is, or with a flag in the word of its length.

- no flag: the pickle of one item.
- `BIG`: region, bytes of the item, then offset and length of the pickle and of each buffer in that region.
- `PACKED`: pickle and buffers themselves (see `mpkit._wire.frame`), where no region was left.
- `PACK`: ``count of the first item << PACK_BITS | number of items``, then one pickle of them all (see packs).

All other numbers are 8-byte words of the machine's own byte order.
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

#: Where the parts of a big item begin: numpy and others like whole cache lines.
_PART_ALIGNMENT: Final = 64
_BYTE_ORDER: Final = sys.byteorder


def lay_out(head: bytes, buffers: Sequence[memoryview]) -> tuple[list[tuple[int, int]], int]:
    """Where pickle and buffers of a big item go in its region (offset and length of each), and how large that
    must be.

    Buffers come first: they are aligned, and the pickle need not be.
    """
    offset = 0
    places: list[tuple[int, int]] = []
    for view in buffers:
        size = view.nbytes
        places.append((offset, size))
        offset += -(-max(size, 1) // _PART_ALIGNMENT) * _PART_ALIGNMENT
    return [(offset, len(head)), *places], offset + max(len(head), 1)


def big(region: int, places: Sequence[tuple[int, int]]) -> bytes:
    """The record of an item that lies in a region, its parts in `places`."""
    numbers = [region, sum(size for _, size in places)]
    for place in places:
        numbers += place
    return struct.pack(f"={len(numbers)}Q", *numbers)


def big_region(record: bytes) -> int:
    """The region that a big item's record names."""
    return int.from_bytes(record[:8], _BYTE_ORDER)


def weight(record: bytes) -> int:
    """What the big item that a record describes counts for `max_bytes`."""
    return weight_of(int.from_bytes(record[8:16], _BYTE_ORDER))


def weight_of(size: int) -> int:
    """What an item of so many bytes counts for `max_bytes`."""
    return ((size + 15) >> 3) << 3


def big_places(record: bytes) -> tuple[tuple[int, int], ...]:
    """Offset and length of that item's pickle, then of its buffers."""
    numbers = struct.unpack(f"={len(record) // 8}Q", record)
    return tuple(zip(numbers[2::2], numbers[3::2], strict=True))
