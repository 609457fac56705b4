"""Removes what a killed process has left in shared memory; called by the process that started it.

Each name tells which process created it (pid and start time). Once that process is dead, everything is
removed that only it could use: parcels, and the files that it shares with the workers of its pools. Queues,
locks and counters are removed, too, unless a living process has one open, or a handle to it may be under way.
In that case the calling process becomes the owner of the names, and treats them as if its own object had been
dropped: it checks them from time to time, and removes them at its exit at the latest.

A name that the dead process had told the resource tracker but not created yet, or had removed without telling
the tracker, is known from its notes (`mpkit._platform.stdlib.notes`).
"""

from __future__ import annotations

import contextlib
import os
import re
import stat
from collections.abc import Iterator
from typing import Final, NamedTuple, TypeAlias

from mpkit._platform.files.descriptors import is_ours
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.notes import TrackedType
from mpkit._platform.stdlib.notes import read as read_notes
from mpkit._shm.memory import names, trail
from mpkit._shm.memory.names import PREFIX, SEGMENT_NAME, SEMAPHORE_FILE, SHM_DIRECTORY

#: A name that was left behind: the arguments of `names.own`, and the name of its segment without the
#: directory.
Left: TypeAlias = tuple[str, TrackedType, str]

#: The kinds of objects to which other processes may have handles.
_SHARED: Final = frozenset({"queue", "lock", "counter"})


class Member(NamedTuple):
    """A dead process, or one of the descendants that die with it."""

    process: ProcessIdentity
    notes: bytes
    """Its notes (see `mpkit._platform.stdlib.notes`)."""
    left: list[Left] | None
    """The names that it has left; None: it was still alive."""


def family_of(process: ProcessIdentity, notes: bytes) -> list[Member]:
    """A dead process, and all descendants that die with it.

    These are the workers of its pools and its `WorkerProcess`es, those of these processes, and so on. (The
    module `trail` explains why none is missing.)

    Args:
        process: the dead process.
        notes: its notes.

    Returns:
        The dead process first, then the others.

    Blocking: reads the directory of shared memory once for each member.
    """
    found: dict[ProcessIdentity, Member] = {}
    unseen = [(process, notes)]
    while unseen:
        member, its_notes = unseen.pop()
        # Checked before its names are listed: if it was dead then, it has created no more since.
        lives = identity.is_alive(member)
        left = list(_left_by(member))
        found[member] = Member(member, its_notes, None if lives else left)
        for name, rtype, base in left:
            if rtype == "shared_memory" and base.startswith(f"{PREFIX}{trail.KIND}-"):
                # OSError: gone meanwhile, or no descriptor left.
                with contextlib.suppress(OSError):
                    more = trail.read(name)
                    if more is not None and more[0] not in found:
                        unseen.append(more)
    return list(found.values())


def living(family: list[Member]) -> list[ProcessIdentity]:
    """The members of a family that had not ended when `family_of` looked."""
    return [member.process for member in family if member.left is None]


def remove(family: list[Member]) -> None:
    """Remove what the dead members of a family have left.

    Only the process that started the first member may call this, and only if both had the same resource
    tracker. It may be called again with a new family when more members have ended.

    Blocking: reads the directory of shared memory once for each member that was alive before.
    """
    for process, notes, left in family:
        if left is not None or not identity.is_alive(process):
            with deferred_interrupts():
                _remove(list(_left_by(process)) if left is None else left, notes)


def _remove(left: list[Left], notes: bytes) -> None:
    left += _noted(notes)
    paths = {base: name for name, rtype, base in left if rtype == "shared_memory"}
    used: dict[str, bool] = {}
    for name, rtype, base in dict.fromkeys(left):
        path = paths.get(base, f"{SHM_DIRECTORY}/{base}")
        if path not in used:
            shared = base.split("-")[1] in _SHARED
            used[path] = shared and _is_in_use(path, under_way=True)
        # This also tells the tracker of the name. It may know the name already or not; told twice, it knows
        # it once. So afterwards it can be told that the name is gone, whether there is a file or not.
        names.own(name, rtype)
        if used[path]:
            names.let_go(name, path, _is_in_use)
        else:
            names.remove(name)


def _is_in_use(about: str, /, *, under_way: bool = False) -> bool:
    # Imported here because it loads a dozen modules, and most programs with a pool have no queue.
    from mpkit._shm.locks.users import in_use_elsewhere  # noqa: PLC0415

    return in_use_elsewhere(about, under_way=under_way)


def _left_by(process: ProcessIdentity) -> Iterator[Left]:
    """The existing names that a process has created."""
    is_its = re.compile(f"-{process.pid}-{process.started}-").search
    for directory in names.directories():
        with contextlib.suppress(OSError):
            for entry in filter(is_its, os.listdir(directory)):
                path = os.path.join(directory, entry)
                if not _is_file_of_ours(path):
                    continue
                if re.fullmatch(SEGMENT_NAME, entry):
                    yield path, "shared_memory", entry
                elif re.fullmatch(SEMAPHORE_FILE, entry):
                    yield _semaphore(entry)


def _is_file_of_ours(path: str) -> bool:
    """Whether it is a regular file of this user. Other users can create files with such names, too."""
    # OSError: gone meanwhile.
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return stat.S_ISREG(status.st_mode) and is_ours(status)
    return False


def _noted(notes: bytes) -> Iterator[Left]:
    """The names in a process's notes. They may exist or not."""
    for name, rtype in read_notes(notes):
        base = name[1:]
        if rtype == "shared_memory" and re.fullmatch(SEGMENT_NAME, base):
            yield f"{SHM_DIRECTORY}/{base}", rtype, base
        elif rtype == "semaphore" and re.fullmatch(SEMAPHORE_FILE, f"sem.{base}"):
            yield _semaphore(f"sem.{base}")


def _semaphore(file: str) -> Left:
    base = file.removeprefix("sem.")
    return f"/{base}", "semaphore", base.rpartition("-")[0]
