"""Where a region lies in its file and how large it is, in one word.

One word is stored and read at once: whoever looks without a lock while a region is given another place sees
the old place or the new one, never the offset of one with the size of the other.
"""

from __future__ import annotations

from typing import Final

from mpkit._shm.memory.segment import PAGE

#: Regions of four terabytes, in files of sixty-four.
_PAGES_BITS: Final = 30
_PAGES_MASK: Final = (1 << _PAGES_BITS) - 1


def place_at(offset: int, size: int) -> int:
    """The place of `size` bytes at `offset`; both are whole pages."""
    return offset // PAGE << _PAGES_BITS | size // PAGE


def offset_of(place: int) -> int:
    """Where in the file the place begins, in bytes."""
    return (place >> _PAGES_BITS) * PAGE


def size_of(place: int) -> int:
    """How many bytes it has."""
    return (place & _PAGES_MASK) * PAGE
