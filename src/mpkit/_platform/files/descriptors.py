"""Whether a descriptor still refers to the same file, the owner of a file, and flags for opening files.

A program that turns itself into a daemon closes all descriptors, and soon the numbers refer to other files.
"""

from __future__ import annotations

import os
import sys
from typing import Final

# Flags for `os.open`, as far as the system has them.
NOT_INHERITED: Final = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
"""Programs that are started do not inherit the descriptor; and no translation of line ends (on Windows)."""
NO_LINK: Final = getattr(os, "O_NOFOLLOW", 0)
"""Opening fails if the file is a symbolic link (which another user may have put there)."""
NO_WAIT: Final = getattr(os, "O_NONBLOCK", 0)
"""Opening does not block if the file is a named pipe (which another user may have put there)."""
NO_TERMINAL: Final = getattr(os, "O_NOCTTY", 0)
"""If the file is a terminal, it does not become the controlling terminal of this process."""


def file_behind(descriptor: int) -> tuple[int, int]:
    """The identity of the file, socket or pipe that a descriptor refers to: device and inode.

    Raises:
        OSError: If the descriptor is closed.
    """
    status = os.fstat(descriptor)
    return status.st_dev, status.st_ino


def is_still(descriptor: int, file: tuple[int, int]) -> bool:
    """Whether the descriptor is open and refers to that file (see `file_behind`)."""
    try:
        return file_behind(descriptor) == file
    except OSError:
        return False


def is_ours(status: os.stat_result) -> bool:
    """Whether a file belongs to this user. Always true on Windows, where the access rights decide."""
    if sys.platform == "win32":
        return True
    return status.st_uid == os.geteuid()
