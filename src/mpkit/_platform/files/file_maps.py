"""Mapping files, shared with other processes or private to this one.

A private mapping lives as long as the object that was made from it, and there may be many: each big result of
a task is one. But a process may often have only a thousand descriptors, and on Linux 65,530 mappings
(vm.max_map_count). So beyond a certain number copies are made instead.
"""

from __future__ import annotations

import mmap
import sys
import weakref
from typing import Any, Final

from mpkit._platform.files.positioned import read_at
from mpkit._platform.processes.identity import is_lack_of_means

#: Whether each `mmap` object keeps a descriptor (which is not needed here); from Python 3.13 on this can be
#: avoided.
MAP_HAS_DESCRIPTOR: Final = sys.version_info < (3, 13)
#: While there are this many private mappings, copies are made instead.
MOST_MAPS = 128 if MAP_HAS_DESCRIPTOR else 10_000
_COPIED_AT_ONCE: Final = 1 << 20

if sys.platform == "win32":

    def map_file(fd: int, size: int, offset: int = 0) -> mmap.mmap:
        """Map `size` bytes of the file from `offset` on, shared and writable."""
        return mmap.mmap(fd, size, access=mmap.ACCESS_WRITE, offset=offset)

    def map_privately(descriptor: int, size: int) -> mmap.mmap:
        """The first `size` bytes of a file as private memory: others do not see what is written there.

        Raises:
            OSError: If the system refuses it.
        """
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_COPY)

    def map_read_only(descriptor: int, size: int) -> mmap.mmap:
        """Map the first `size` bytes of a file, shared and read-only."""
        return mmap.mmap(descriptor, size, access=mmap.ACCESS_READ)

else:
    _options: dict[str, Any] = {} if MAP_HAS_DESCRIPTOR else {"trackfd": False}
    _private: weakref.WeakSet[mmap.mmap] = weakref.WeakSet()

    def map_file(fd: int, size: int, offset: int = 0) -> mmap.mmap:
        """Map `size` bytes of the file from `offset` on, shared and writable."""
        return mmap.mmap(
            fd, size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=offset, **_options
        )

    def map_privately(descriptor: int, size: int) -> mmap.mmap:
        """The first `size` bytes of a file as private memory: others do not see what is written there.

        Raises:
            OSError: If the system refuses it.
        """
        rights = mmap.PROT_READ | mmap.PROT_WRITE
        if len(_private) < MOST_MAPS:
            try:
                mapped = mmap.mmap(descriptor, size, mmap.MAP_PRIVATE, rights, **_options)
            except OSError as error:
                if not is_lack_of_means(error):
                    raise
            else:
                _private.add(mapped)
                return mapped
        # The kernel merges adjacent anonymous mappings, so these hardly count towards its limit.
        copy = mmap.mmap(-1, size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, rights)
        at = 0
        while at < size and (part := read_at(descriptor, min(size - at, _COPIED_AT_ONCE), at)):
            copy[at : at + len(part)] = part
            at += len(part)
        return copy

    def map_read_only(descriptor: int, size: int) -> mmap.mmap:
        """Map the first `size` bytes of a file, shared and read-only."""
        return mmap.mmap(descriptor, size, mmap.MAP_SHARED, mmap.PROT_READ, **_options)


def give_back(mapped: mmap.mmap, offset: int, size: int) -> bool:
    """Give pages of a shared file back to the system; after that they read as zeros. False if they stay."""
    if sys.platform != "linux":
        return False
    try:
        mapped.madvise(mmap.MADV_REMOVE, offset, size)
    except OSError:
        # Not every file system supports this, and a process that has locked all its memory (mlockall) cannot
        # do it.
        return False
    return True
