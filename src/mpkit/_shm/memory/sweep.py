"""What killed processes left behind in the temporary directory, and who may remove it.

A segment lies there when ``/dev/shm`` has no room for it (`mpkit._shm.memory.segment`). Its creator removes
it, but nobody does that for a creator that is killed: the resource tracker of multiprocessing knows
``/dev/shm`` only. So the first such file of a process is the occasion to look for those of the dead.

Nothing is taken from the living. A file goes only if all of this holds:

- it has a name that `Segment.create` gives, is a regular file, and belongs to this user;
- its creator, which its name tells, is dead;
- no process has it open as a `Segment`: each one that has marks it (`mpkit._platform.files.use_marks`);
- it is older than a minute: a creator marks its file just after it has made it, and one that is on its way
  in a pickle is opened in that time. A parcel that was handed over (`names.hand_over`) has a day.

The mark is what counts between containers that share the directory: each has pids of its own, so the creator
of a file from next door looks dead from here.

Where there are no marks (outside Linux) there are no such containers either, and the creator's life
decides: it removes its names at its exit as well, and whoever has the files open keeps them.
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
import sys
from typing import Final

from mpkit._platform.files.descriptors import NO_LINK, NO_WAIT, NOT_INHERITED, is_ours
from mpkit._platform.files.use_marks import nobody_uses
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.threads.clock import CLOCK
from mpkit._shm.memory.names import SEGMENT_NAME

__all__ = ["remove_abandoned", "sweep_once"]

#: A younger file may be one that is just being made, or that somebody is about to open.
YOUNGEST_SECONDS: Final = 60.0

_swept_by = 0


def sweep_once(directory: str) -> None:
    """Call `remove_abandoned` the first time in a process (a child that is forked has its own first time)."""
    global _swept_by
    if _swept_by != os.getpid():
        _swept_by = os.getpid()
        remove_abandoned(directory)


def remove_abandoned(directory: str) -> list[str]:
    """Remove the files of dead processes in `directory`, as the top of this file tells.

    Never raises: others may do the same at the same time, and it is a favour, not a duty.

    Returns:
        The paths that were removed.

    Blocking: a look at each name in the directory, once; microseconds for each file of mpkit's.
    """
    removed: list[str] = []
    with contextlib.suppress(OSError), os.scandir(directory) as entries:
        for entry in entries:
            # OSError: gone, or not ours to look at.
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
        # Last: all else is known from one look.
        and not identity.is_alive(ProcessIdentity(int(named["pid"]), int(named["started"])))
    )


def _is_our_old_file(status: os.stat_result) -> bool:
    return (
        stat.S_ISREG(status.st_mode) and is_ours(status) and CLOCK.time() - status.st_mtime > YOUNGEST_SECONDS
    )


def _remove_if_unused(path: str) -> bool:
    if sys.platform == "win32":
        return False  # there an open file cannot be removed
    fd = os.open(path, os.O_RDWR | NOT_INHERITED | NO_LINK | NO_WAIT)
    try:
        # Once more, of what is open now: a name can be given to another file at any time.
        if not _is_our_old_file(os.fstat(fd)) or not nobody_uses(fd):
            return False
        # Whoever has opened it since, and could not mark it any more, keeps it: only the name goes.
        os.unlink(path)
    finally:
        os.close(fd)
    return True
