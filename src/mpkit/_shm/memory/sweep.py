"""Removes files that killed processes have left in the temporary directory.

A segment is there if ``/dev/shm`` had no room for it (`mpkit._shm.memory.segment`). Normally its creator
removes it. If the creator is killed, nobody else does: the resource tracker of multiprocessing covers only
``/dev/shm``. So when a process creates its first such file, it also removes those of dead processes.

Nothing is taken from a living process. A file is removed only if all of this holds:

- it has a name that `Segment.create` gives, is a regular file, and belongs to this user;
- its creator, whose identity is part of the name, is dead;
- no process has it open as a `Segment`: those that do hold marks on it (`mpkit._platform.files.use_marks`);
- it is older than a minute: a creator marks its file just after creating it, and a file whose name is on its
  way in a pickle is opened within that time. A parcel that was handed over (`names.hand_over`) has a day.

Between containers that share the directory, the mark is what counts: each container has pids of its own, so
the creator of a file from another container looks dead from here.

Outside Linux there are no marks, but no such containers either, so whether the creator is alive decides: it
removes its names at its exit anyway, and processes that have the files open keep them.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import Final

from mpkit._platform.files.descriptors import NO_LINK, NO_WAIT, NOT_INHERITED, is_ours
from mpkit._platform.files.use_marks import nobody_uses
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.memory.names import SEGMENT_NAME

#: A younger file may still be in the making, or another process may be about to open it.
YOUNGEST_SECONDS: Final = 60.0

_swept_by = 0


def sweep_once(directory: str) -> None:
    """Call `remove_abandoned`, but only the first time in each process (a forked child counts anew)."""
    global _swept_by
    if _swept_by != os.getpid():
        _swept_by = os.getpid()
        remove_abandoned(directory)


def remove_abandoned(directory: str) -> list[str]:
    """Remove the files of dead processes in `directory`, by the rules at the top of this module.

    Errors of the system are ignored: other processes may do the same at the same time, and nothing depends on
    it.

    Returns:
        The paths that were removed.

    Blocking: reads the directory once; takes microseconds for each file of mpkit.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            # OSError: the file is gone, or this user may not open it.
            with contextlib.suppress(OSError):
                if _looks_abandoned(entry) and _remove_if_unused(entry.path):
                    removed.append(entry.path)
    return removed


def _looks_abandoned(entry: os.DirEntry[str]) -> bool:
    named = re.fullmatch(SEGMENT_NAME, entry.name)
    if named is None:
        return False
    status = entry.stat(follow_symlinks=False)
    return (
        _is_our_old_file(status)
        # Last, because it costs the most.
        and not identity.is_alive(ProcessIdentity(int(named["pid"]), int(named["started"])))
    )


def _is_our_old_file(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode) and is_ours(status) and CLOCK.time() - status.st_mtime > YOUNGEST_SECONDS
    )


def _remove_if_unused(path: str) -> bool:
    fd = os.open(path, os.O_RDWR | NOT_INHERITED | NO_LINK | NO_WAIT)
    try:
        # Checked again for the file that is open now: the name may refer to another file since.
        if not _is_our_old_file(os.fstat(fd)) or not nobody_uses(fd):
            return False
        # A process that has opened it since, and could not mark it any more, keeps it: only the name goes.
        os.unlink(path)
    finally:
        os.close(fd)
    return True
