"""What dead processes of mpkit have left in shared memory.

Normally there is nothing: a file is removed by its creator or, if that was killed, by multiprocessing's
resource tracker. Files are left if the resource tracker was killed as well, or if
they are where it does not look.

The creator of a file, and the processes that have it open, are known by their pids. Containers may share a
directory although each has its own pids: then, seen from one container, the living processes of another one
look dead. For files in the temporary directory (see `mpkit._shm.memory.sweep`) the kernel can tell whether
they are in use; for those in ``/dev/shm``, and for semaphores, which cannot be locked, it cannot. So
leftovers can be recognised reliably only by a process that sees all processes of the machine:
    `sees_every_process`.
"""

from __future__ import annotations

import contextlib
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from mpkit._platform.files.descriptors import is_ours
from mpkit._platform.processes import identity
from mpkit._shm.memory import names
from mpkit.introspect import _segments

if TYPE_CHECKING:
    from collections.abc import Iterator


#: The initial pid namespace of a machine. Its number is PROC_PID_INIT_INO in the sources of Linux, the same
#: on every machine since Linux 3.8.
_ALL_PIDS: Final = "pid:[4026531836]"
_OUR_PIDS: Final = "/proc/self/ns/pid"


@dataclass(frozen=True)
class Leftover:
    """A file whose creator is dead, and that no process has open.

    Attributes:
        path: its path.
        size_bytes: how much removing it frees.
        pid: the process that created it.
    """

    path: str
    size_bytes: int
    pid: int


def sees_every_process() -> bool:
    """Whether this process sees all processes of the machine. False in a container with its own pids."""
    if sys.platform != "linux":
        return True
    try:
        return os.readlink(_OUR_PIDS) == _ALL_PIDS
    except OSError:
        return False


def find() -> list[Leftover]:
    """All files of this user that dead processes have left, in a fixed order."""
    found = [
        left
        for directory in names.directories()
        for path in sorted(_ours(directory))
        if (left := _examine(path)) is not None
    ]
    # After that, because the creator may have passed a file on just before it died. Compared by name only
    # (names are unique), because the path of the directory may be a different one here (through a link, or in
    # a container).
    in_use = {os.path.basename(name) for name in _segments.users()} if found else set[str]()
    return [left for left in found if os.path.basename(left.path) not in in_use]


def remove(leftovers: list[Leftover]) -> list[Leftover]:
    """Remove the files, and return those that were removed."""
    removed: list[Leftover] = []
    for left in leftovers:
        with contextlib.suppress(OSError):
            Path(left.path).unlink()
            removed.append(left)
    return removed


def _ours(directory: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            if _segments.creator(entry.name) is not None and entry.is_file(follow_symlinks=False):
                yield entry.path


def _examine(path: str) -> Leftover | None:
    made_by = _segments.creator(path)
    assert made_by is not None
    if identity.is_alive(made_by):
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return None
    if not is_ours(status):
        return None
    return Leftover(path, status.st_size, made_by.pid)
