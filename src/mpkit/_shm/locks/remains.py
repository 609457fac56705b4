"""What a killed process has left in shared memory, and how whoever started it removes that.

Each name tells which process made it, with its start time. Once that one is dead, what only it could use
goes: parcels, and what it shares with the workers of its pools. A queue, a lock or a counter goes as well,
unless a living process has it open or a handle to it is under way: then it is treated like one that its
creator has dropped. The names are this process's from then on, which looks at them again from time to time,
and removes them at its exit.

What a process had only told the resource tracker, or had already removed without telling it, is known from
its notes (`mpkit._platform.stdlib.notes`).
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
from mpkit._platform.stdlib.notes import read as read_notes
from mpkit._shm.memory import names, trail
from mpkit._shm.memory.names import PREFIX, SEGMENT_NAME, SEMAPHORE_FILE, SHM_DIRECTORY, NameType

__all__ = ["Member", "family_of", "living", "remove"]

#: A name: as `names.own` takes it, what it is, and the name of its segment without the directory.
Left: TypeAlias = tuple[str, NameType, str]

#: Of these others may have a handle.
_SHARED: Final = frozenset({"queue", "lock", "counter"})


class Member(NamedTuple):
    """A process that has died, or one of its family."""

    process: ProcessIdentity
    notes: bytes
    """What it has noted."""
    left: list[Left] | None
    """What it has left; None: it lived."""


def family_of(process: ProcessIdentity, notes: bytes) -> list[Member]:
    """A dead process first, then those that die with it, and with them, and so on.

    (The workers of its pools, and each `WorkerProcess`. None is missing: see `trail`.)

    Blocking: for a look at each name in shared memory for each of them.
    """
    found: dict[ProcessIdentity, Member] = {}
    unseen = [(process, notes)]
    while unseen:
        member, its_notes = unseen.pop()
        # Before the look: what was dead then makes no more.
        lives = identity.is_alive(member)
        left = list(_left_by(member))
        found[member] = Member(member, its_notes, None if lives else left)
        for name, kind, base in left:
            if kind == "segment" and base.startswith(f"{PREFIX}{trail.KIND}-"):
                # Gone meanwhile, or no descriptor left.
                with contextlib.suppress(OSError):
                    more = trail.read(name)
                    if more is not None and more[0] not in found:
                        unseen.append(more)
    return list(found.values())


def living(family: list[Member]) -> list[ProcessIdentity]:
    """Those of a family that had not ended yet."""
    return [member.process for member in family if member.left is None]


def remove(family: list[Member]) -> None:
    """Remove what a dead process has left, and those of its family that are dead.

    To be called by whoever has started the process, once, or once more when more of its family are dead. It
    has had the same resource tracker as this process.

    Blocking: for a look at each name in shared memory for each of those that lived.
    """
    for process, notes, left in family:
        if left is not None or not identity.is_alive(process):
            with deferred_interrupts():
                _remove(list(_left_by(process)) if left is None else left, notes)


def _remove(left: list[Left], notes: bytes) -> None:
    left += _noted(notes)
    paths = {base: name for name, kind, base in left if kind == "segment"}
    used: dict[str, bool] = {}
    for name, kind, base in dict.fromkeys(left):
        path = paths.get(base, f"{SHM_DIRECTORY}/{base}")
        if path not in used:
            shared = base.split("-")[1] in _SHARED
            used[path] = shared and _is_in_use(path, under_way=True)
        # The tracker may know the name or not, and told once more knows it once. So it can be told that it is
        # gone, whether there is a file or not.
        names.own(name, kind)
        if used[path]:
            names.let_go(name, path, _is_in_use)
        else:
            names.remove(name)


def _is_in_use(about: str, /, *, under_way: bool = False) -> bool:
    # It loads a dozen modules, and most programs with a pool have no queue.
    from mpkit._shm.locks.users import in_use_elsewhere  # noqa: PLC0415

    return in_use_elsewhere(about, under_way=under_way)


def _left_by(process: ProcessIdentity) -> Iterator[Left]:
    """Each name that a process has made and that is there."""
    is_its = re.compile(f"-{process.pid}-{process.started}-").search
    directories = [SHM_DIRECTORY]
    # There may be none, or no descriptor left to look for it with.
    with contextlib.suppress(OSError):
        directories.append(names.temporary_directory())
    for directory in dict.fromkeys(directories):
        with contextlib.suppress(OSError):
            for entry in filter(is_its, os.listdir(directory)):
                path = os.path.join(directory, entry)
                if not _is_file_of_ours(path):
                    continue
                if re.fullmatch(SEGMENT_NAME, entry):
                    yield path, "segment", entry
                elif re.fullmatch(SEMAPHORE_FILE, entry):
                    yield _semaphore(entry)


def _is_file_of_ours(path: str) -> bool:
    """Whether it is a file of this user. Everybody may make files there, of whatever name."""
    # Gone meanwhile.
    with contextlib.suppress(OSError):
        status = os.lstat(path)
        return stat.S_ISREG(status.st_mode) and is_ours(status)
    return False


def _noted(notes: bytes) -> Iterator[Left]:
    """The same of what it has noted; these may be there or not."""
    for name, rtype in read_notes(notes):
        base = name[1:]
        if rtype == "shared_memory" and re.fullmatch(SEGMENT_NAME, base):
            yield f"{SHM_DIRECTORY}/{base}", "segment", base
        elif rtype == "semaphore" and re.fullmatch(SEMAPHORE_FILE, f"sem.{base}"):
            yield _semaphore(f"sem.{base}")


def _semaphore(file: str) -> Left:
    base = file.removeprefix("sem.")
    return f"/{base}", "semaphore", base.rpartition("-")[0]
