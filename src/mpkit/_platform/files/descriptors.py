"""Whether a descriptor still is what it was, whose a file is, and how one is opened.

A program that turns itself into a daemon closes every descriptor, and the number is soon another file's.
"""

from __future__ import annotations

import os
import sys
from typing import Final

__all__ = ["NOT_INHERITED", "NO_LINK", "NO_TERMINAL", "NO_WAIT", "file_behind", "is_ours", "is_still"]

# Flags for `os.open`, as far as the system has them.
NOT_INHERITED: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""No program that is started meanwhile gets it; and bytes are as they are (Windows)."""
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
"""An error where somebody has put a symbolic link in the place of the file."""
NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
"""Nobody is waited for where somebody has put a named pipe there."""
NO_TERMINAL: Final = getattr(os, "O_NOCTTY", 0)
"""Where somebody has put a terminal there, it does not become that of this process."""


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
