"""Whether a descriptor still is what it was, and whose a file is.

A program that turns itself into a daemon closes every descriptor, and the number is soon another file's.
"""

from __future__ import annotations

import os
import sys

__all__ = ["file_behind", "is_ours", "is_still"]


def file_behind(descriptor: int) -> tuple[int, int]:
    """What file, socket or pipe it is: device and inode.

    Raises:
        OSError: If it is closed.
    """
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def is_still(descriptor: int, file: tuple[int, int]) -> bool:
    """Whether the descriptor is open, and for that file."""
    try:
        return file_behind(descriptor) == file
    except OSError:
        return False


def is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to this user. On Windows, where its access rights decide, always."""
    if sys.platform == "win32":
        return True
    return status.st_uid == os.geteuid()
