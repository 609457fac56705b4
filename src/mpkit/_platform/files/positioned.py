"""Reading and writing at an offset of a file, whatever position its descriptor has.

That position is shared with every fork and every thread that has the descriptor, so nobody may use it.
"""

from __future__ import annotations

import os
import sys
import threading

__all__ = ["read_at", "write_all"]

if sys.platform == "win32":
    # There is no call for it, and no fork: only threads share a position.
    _position = threading.Lock()

    def write_at(descriptor: int, data: bytes | memoryview, at: int) -> int:
        """Write what one call of the system takes, and return how many bytes that were."""
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
    # macOS refuses 2 GiB, which Linux cuts off.
    _MOST_AT_ONCE = 1 << 30

    def write_at(descriptor: int, data: bytes | memoryview, at: int) -> int:
        """Write what one call of the system takes, and return how many bytes that were."""
        return os.pwrite(descriptor, memoryview(data)[:_MOST_AT_ONCE], at)

    def read_at(descriptor: int, size: int, at: int) -> bytes:
        """Read up to `size` bytes; none at the end of the file."""
        return os.pread(descriptor, min(size, _MOST_AT_ONCE), at)


def write_all(descriptor: int, data: bytes | memoryview, at: int) -> int:
    """Write all of it, in as many calls as that takes; where the next byte goes."""
    with memoryview(data) as whole, whole.cast("B") as left:
        done = 0
        while done < len(left):
            done += write_at(descriptor, left[done:], at + done)
    return at + done
