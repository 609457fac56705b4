"""What dead processes of mpkit left behind in shared memory.

Normally nothing: the creator of a name removes it, and if it is killed, multiprocessing's resource tracker
does. What is left is the work of a machine-wide kill (the tracker included), or lies where the tracker
does not look.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mpkit._platform import identity
from mpkit._platform.identity import ProcessIdentity
from mpkit._shm.segment import SHM_DIRECTORY
from mpkit.introspect import _segments

if TYPE_CHECKING:
    from collections.abc import Iterator


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


def find() -> list[Leftover]:
    """Everything of this user that was left behind, in a fixed order."""
    in_use = _segments.users()
    return [
        left
        for folder in dict.fromkeys((SHM_DIRECTORY, tempfile.gettempdir()))
        for path in sorted(_ours(folder))
        if path not in in_use and (left := _examine(path)) is not None
    ]


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
    pid, started = made_by
    if started is None:
        # A reused pid makes a leftover look alive: better that than to take something from the living.
        alive = _segments.exists(pid)
    else:
        alive = identity.is_alive(ProcessIdentity(pid, started))
    if alive:
        return None
    try:
        status = Path(path).stat()
    except OSError:
        return None
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return None
    return Leftover(path, status.st_size, pid)
