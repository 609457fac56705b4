"""What dead processes of mpkit left behind in shared memory.

Normally nothing: the creator of a name removes it, and if it is killed, multiprocessing's resource tracker
does. What is left is the work of a machine-wide kill (the tracker included), or lies where the tracker
does not look.

Who created a file and who has it open is told by pids. Containers that share a directory have pids of their
own each, so from inside a container the living next door look dead. Unlike the files that
`mpkit._shm.memory.sweep` removes, those in ``/dev/shm`` (and semaphores, which cannot be locked) bear nothing
by which the kernel could tell that they are in use. So only one who sees every process of the machine can
judge: `sees_every_process`.
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
from mpkit._shm.memory.names import SHM_DIRECTORY, temporary_directory
from mpkit.introspect import _segments

if TYPE_CHECKING:
    from collections.abc import Iterator


# Of the pid namespace that the machine starts with: PROC_PID_INIT_INO in the sources of Linux, the same on
# every machine since 3.8.
_ALL_PIDS: Final = "pid:[4026531836]"
_OUR_PIDS: Final = "/proc/self/ns/pid"


@dataclass(frozen=True)
class Leftover:
    """A file whose creator is dead and that nobody has open.

    Attributes:
        path: where it is.
        size_bytes: what removing it gives back.
        pid: the process that created it.
    """

    path: str
    size_bytes: int
    pid: int


def sees_every_process() -> bool:
    """Whether every process of this machine has a pid here. False in a container with pids of its own."""
    if sys.platform != "linux":
        return True
    try:
        return os.readlink(_OUR_PIDS) == _ALL_PIDS
    except OSError:
        return False


def find() -> list[Leftover]:
    """Everything of this user that was left behind, in a fixed order."""
    folders = [SHM_DIRECTORY]
    # There may be none in a container that is read-only.
    with contextlib.suppress(FileNotFoundError):
        folders.append(temporary_directory())
    found = [
        left
        for folder in dict.fromkeys(folders)
        for path in sorted(_ours(folder))
        if (left := _examine(path)) is not None
    ]
    # Only then: others may have opened what its creator was just handing over when it died. By names alone,
    # which are unique: the way to the folder may be another one for us (a link to it, a container that has it
    # elsewhere).
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


def _ours(folder: str) -> Iterator[str]:
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _segments.creator(entry.name) is not None and entry.is_file(follow_symlinks=False):
                yield entry.path


def _examine(path: str) -> Leftover | None:
    made_by = _segments.creator(os.path.basename(path))
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
