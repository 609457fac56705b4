"""The trail: how the children of a killed process are found, so that what they have left can be removed, too.

A worker of a pool writes its identity, and its notes (`mpkit._platform.stdlib.notes`), into the file that it
shares with the pool's process. The name of that file tells which process created it. So when both have died,
the files that the pool's process has left lead to the worker, and so to the files that the worker has left
(`mpkit._shm.locks.remains`). A `WorkerProcess` that is started by another one, or by a task, has a separate
file for this purpose.
"""

from __future__ import annotations

import os
from typing import Final

from mpkit._platform.files.descriptors import NO_LINK, NO_WAIT, NOT_INHERITED
from mpkit._platform.files.positioned import read_at
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import notes
from mpkit._platform.threads.fences import TOTAL_STORE_ORDER, full_fence
from mpkit._shm.memory.segment import Segment, check_private

#: The kind in the names of such files.
KIND: Final = "worker"
#: Indices of words: the pid, the start time (stored before the pid), and on the next cache lines the notes.
_PID, _STARTED, _NOTES = 48, 49, 56
#: The first word after the trail.
END: Final = _NOTES + (notes.SIZE >> 3)
_NOTES_AT: Final = _NOTES << 3


def begin(segment: Segment) -> None:
    """Begin this process's trail in `segment`, of which only the mapping is kept."""
    me = identity.current()
    segment.words[_STARTED] = me.started
    if not TOTAL_STORE_ORDER:
        full_fence()
    segment.words[_PID] = me.pid
    mm = segment.mm

    def write(at: int, record: bytes) -> None:
        mm[_NOTES_AT + at : _NOTES_AT + at + len(record)] = record

    notes.keep(write)


def notes_in(segment: Segment) -> bytes:
    """The notes in a trail."""
    return segment.mm[_NOTES_AT : _NOTES_AT + notes.SIZE]


def read(path: str) -> tuple[ProcessIdentity, bytes] | None:
    """Read the trail in a file: the process's identity and notes; None if it has not begun its trail.

    Raises:
        OSError: the file is gone, or cannot be read, or is not this user's alone.
    """
    fd = os.open(path, os.O_RDONLY | NOT_INHERITED | NO_LINK | NO_WAIT)
    try:
        # Checked, because the process that it names may get killed.
        check_private(path, os.fstat(fd))
        head = read_at(fd, 16, _PID << 3)
        noted = read_at(fd, notes.SIZE, _NOTES_AT)
    finally:
        os.close(fd)
    pid, started = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
    return (ProcessIdentity(pid, started), noted) if pid else None
