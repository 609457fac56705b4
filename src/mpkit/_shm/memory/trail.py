"""How a process is found by whoever removes what the one that has started it has left.

A worker of a pool writes who it is, and what it notes (`mpkit._platform.stdlib.notes`), into the file that it
shares with the pool. The name of that tells who made it. So when both have died, the worker is found by what
the other one has left, and by that what the worker has left itself (`mpkit._shm.locks.remains`). The same is
done for a `WorkerProcess` that is started by another one, or by a task; it has a file for that alone.
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

__all__ = ["END", "KIND", "begin", "notes_in", "read"]

#: What the names of such files tell.
KIND: Final = "worker"
#: In words: pid and start time, which is stored first; on the next cache lines the notes.
_PID, _STARTED, _NOTES = 48, 49, 56
#: Where it ends.
END: Final = _NOTES + (notes.SIZE >> 3)
_NOTES_AT: Final = _NOTES << 3


def begin(segment: Segment) -> None:
    """In the process that is to be found: this is its file, of which only the mapping is needed."""
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
    """What the worker has noted."""
    return segment.mm[_NOTES_AT : _NOTES_AT + notes.SIZE]


def read(path: str) -> tuple[ProcessIdentity, bytes] | None:
    """Whose file it is, and what that process has noted; None if it has not come so far.

    Raises:
        OSError: It is gone, or cannot be read, or is not this user's alone.
    """
    fd = os.open(path, os.O_RDONLY | NOT_INHERITED | NO_LINK | NO_WAIT)
    try:
        # Who it names may be killed.
        check_private(path, os.fstat(fd))
        head = read_at(fd, 16, _PID << 3)
        noted = read_at(fd, notes.SIZE, _NOTES_AT)
    finally:
        os.close(fd)
    pid, started = int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")
    return (ProcessIdentity(pid, started), noted) if pid else None
