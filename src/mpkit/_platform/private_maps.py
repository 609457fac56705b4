"""Mapping a file for this process alone, without a descriptor for each mapping.

Such mappings live as long as the objects that were made of them, and there may be thousands: each big result
of a task is one, and a process has a thousand descriptors, often.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from typing import Final

from mpkit._platform.identity import is_lack_of_means
from mpkit._platform.positioned import read_at

__all__ = ["MOST_WITH_DESCRIPTOR", "map_privately", "map_read_only"]

#: Before Python 3.13 each mapping keeps a descriptor: when there are so many, further ones are copies.
MOST_WITH_DESCRIPTOR: Final = 128
_COPIED_AT_ONCE: Final = 1 << 20

if sys.platform == "win32":

    def map_privately(descriptor: int, size: int) -> mmap.mmap:
        """The first `size` bytes of a file as memory of our own: nobody else sees what is written there.

        Raises:
            OSError: If the system refuses it.
        """
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)

    def map_read_only(descriptor: int, size: int) -> mmap.mmap:
        """The same memory as everybody who maps the file has, which cannot be written to."""
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)

elif sys.version_info >= (3, 13):

    def map_privately(descriptor: int, size: int) -> mmap.mmap:
        """The first `size` bytes of a file as memory of our own: nobody else sees what is written there.

        Raises:
            OSError: If the system refuses it.
        """
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        return mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, rights, trackfd=False)

    def map_read_only(descriptor: int, size: int) -> mmap.mmap:
        """The same memory as everybody who maps the file has, which cannot be written to."""
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ, trackfd=False)

else:
    _with_descriptor: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def map_privately(descriptor: int, size: int) -> mmap.mmap:
        """The first `size` bytes of a file as memory of our own: nobody else sees what is written there.

        Raises:
            OSError: If the system refuses it.
        """
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        if len(_with_descriptor) < MOST_WITH_DESCRIPTOR:
            try:
                mapped = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, rights)
            except OSError as error:
                if not is_lack_of_means(error):
                    raise
            else:
                _with_descriptor.add(mapped)
                return mapped
        copy = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, rights)
        at = 0
        while at < size and (part := read_at(descriptor, min(size - at, _COPIED_AT_ONCE), at)):
            copy[at : at + len(part)] = part
            at += len(part)
        return copy

    def map_read_only(descriptor: int, size: int) -> mmap.mmap:
        """The same memory as everybody who maps the file has, which cannot be written to."""
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ)
