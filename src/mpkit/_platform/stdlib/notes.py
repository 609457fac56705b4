"""What a process notes where whoever has started it finds it, should it be killed: names.

The resource tracker of multiprocessing is told of a name before that is made, and that it is gone after it
has been removed: so the names of a whole program that is killed are removed, whenever that happens. But one
that is killed between two of these steps leaves the tracker a name that stands for nothing, and that nobody
can look up; at the end of the program it would complain of it. So the name is noted before the first step.

There is a place for the last few only: a step takes microseconds. What stands there may long be done.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from typing import Final, Literal, TypeAlias, cast

from mpkit._platform.threads.forks import in_forked_children

__all__ = ["SIZE", "TrackedType", "are_kept", "keep", "note", "read"]

_RECORD: Final = 64
_RECORDS: Final = 32
#: Bytes for all of them.
SIZE: Final = _RECORD * _RECORDS

#: What the resource tracker calls the kinds of names that there are here.
TrackedType = Literal["shared_memory", "semaphore"]

Write: TypeAlias = "Callable[[int, bytes], object]"

# Strict: a record may be half written. The name starts with a slash.
_NOTED: Final = rb"(semaphore|shared_memory):(/[a-z0-9-]+)\0*"

_write: Write | None = None
_numbers = itertools.count()


def keep(write: Write) -> None:
    """Note from now on, by calling this with an offset (below `SIZE`) and bytes."""
    global _write
    _write = write


def are_kept() -> bool:
    """Whether this process notes anything."""
    return _write is not None


def note(name: str, rtype: TrackedType) -> None:
    """The tracker is going to be told of this name, or the name is going to be removed."""
    write = _write
    if write is not None:
        record = f"{rtype}:{name}".encode()
        # (None of mpkit's is as long.)
        if len(record) <= _RECORD:
            write(next(_numbers) % _RECORDS * _RECORD, record.ljust(_RECORD, b"\0"))


def read(notes: bytes) -> Iterator[tuple[str, TrackedType]]:
    """The names in those `SIZE` bytes (or none)."""
    for at in range(0, len(notes), _RECORD):
        found = re.fullmatch(_NOTED, notes[at : at + _RECORD])
        if found is not None:
            yield found[2].decode(), cast("TrackedType", found[1].decode())


@in_forked_children
def _forget_after_fork() -> None:
    global _write
    # The place is the parent's.
    _write = None
