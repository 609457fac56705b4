"""Notes: the names that a process is creating or removing, kept where its parent finds them if it is killed.

The resource tracker of multiprocessing is told of a name before the name is created, and told that it is gone
after it has been removed. So if a whole program is killed at any moment, all its names are removed. But if
one process is killed between two of these steps, the tracker knows a name that does not exist, which nobody
else can find out, and at the end of the program it would print a warning. So the name is noted before the
first step.

There is room only for the last few names, because a step takes microseconds. Most names in the notes have
long been dealt with.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias, cast

from mpkit._platform.threads.forks import in_forked_children

_RECORD: Final = 64
_RECORDS: Final = 32
#: The length of all notes in bytes.
SIZE: Final = _RECORD * _RECORDS

#: The types of names that mpkit has, as the resource tracker calls them.
TrackedType = Literal["shared_memory", "semaphore"]

Write: TypeAlias = "Callable[[int, bytes], object]"

# Strict, because a record may be half written. The name starts with a slash.
_NOTED: Final = rb"(semaphore|shared_memory):(/[a-z0-9-]+)\0*"

_write: Write | None = None
_numbers = itertools.count()


def keep(write: Write) -> None:
    """Keep notes from now on, by calling `write` with an offset (below `SIZE`) and bytes."""
    global _write
    _write = write


def are_kept() -> bool:
    """Whether this process keeps notes."""
    return _write is not None


def note(name: str, rtype: TrackedType) -> None:
    """Note a name (which starts with a slash), before the tracker is told of it, or before it is removed."""
    write = _write
    if write is not None:
        record = f"{rtype}:{name}".encode()
        # Names of mpkit are never longer.
        if len(record) <= _RECORD:
            write(next(_numbers) % _RECORDS * _RECORD, record.ljust(_RECORD, b"\0"))


def read(notes: bytes) -> Iterator[tuple[str, TrackedType]]:
    """The names in the notes of a process (`SIZE` bytes, or none)."""
    for at in range(0, len(notes), _RECORD):
        found = re.fullmatch(_NOTED, notes[at : at + _RECORD])
        if found is not None:
            yield found[2].decode(), cast("TrackedType", found[1].decode())


@in_forked_children
def _forget_after_fork() -> None:
    global _write
    # The notes are the parent's.
    _write = None
