"""Reading and writing at an offset of a file, independently of the descriptor's file position.

That position is shared by all threads and forked processes that have the descriptor, so it must not be used.
"""

from __future__ import annotations

import os
import sys
import threading

if sys.platform == "win32":
    # Windows has no such calls, but no fork either, so only threads share a position.
    _position = threading.Lock()

    def write_at(descriptor: int, data: bytes | memoryview, at: int) -> int:
        """Write as many bytes as one system call takes, and return how many."""
        with _position:
            os.lseek(descriptor, at, os.SEEK_SET)
            return os.write(descriptor, data)

    def read_at(descriptor: int, size: int, at: int) -> bytes:
        """Read up to `size` bytes; none at the end of the file."""
        with _position:
            os.lseek(descriptor, at, os.SEEK_SET)
            return os.read(descriptor, size)

elif sys.platform == "linux":
    write_at = os.pwrite
    read_at = os.pread

else:
    # macOS refuses calls with 2 GiB or more; Linux transfers only a part.
    _MOST_AT_ONCE = 1 << 30

    def write_at(descriptor: int, data: bytes | memoryview, at: int) -> int:
        """Write as many bytes as one system call takes, and return how many."""
        return os.pwrite(descriptor, memoryview(data)[:_MOST_AT_ONCE], at)

    def read_at(descriptor: int, size: int, at: int) -> bytes:
        """Read up to `size` bytes; none at the end of the file."""
        return os.pread(descriptor, min(size, _MOST_AT_ONCE), at)


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> int:
    """Write all of `data`, in as many calls as necessary; return the offset behind it."""
    with memoryview(data) as whole, whole.cast("B") as left:
        done = 0
        while done < len(left):
            done += write_at(descriptor, left[done:], at + done)
    return at + done
