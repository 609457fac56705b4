"""``/proc/<pid>/stat``, where Linux tells the most about a process at the price of one file."""

from __future__ import annotations

import os
from typing import Final

__all__ = [
    "ENDED",
    "NOT_RUNNING",
    "PARENT",
    "STARTED",
    "STATE",
    "SYSTEM_TICKS",
    "USER_TICKS",
    "fields_of",
    "is_stopped",
    "thread_states",
]

# Where a field is in what `fields_of` returns; proc(5) counts from 1, and two more in front.
STATE, PARENT, USER_TICKS, SYSTEM_TICKS, _THREADS, STARTED = 0, 1, 11, 12, 17, 19

#: States of a process that has ended; nobody has waited for it yet.
ENDED = (b"Z", b"X", b"x")

#: States of a thread that a signal, or a debugger, has stopped.
_STOPPED: Final = (b"T", b"t")

#: States of a thread that does nothing until somebody continues it, or ever.
NOT_RUNNING: Final = frozenset({*_STOPPED, *ENDED})


def fields_of(pid: int) -> list[bytes]:
    """The fields behind the pid and the command.

    Raises:
        OSError: If there is no such process, it is hidden from us, or there is no descriptor or memory left.
    """
    return _fields_in(f"/proc/{pid}/stat")


def thread_states(pid: int) -> set[bytes]:
    """The states that the threads of a process are in, each once.

    Raises:
        OSError: As `fields_of`.
    """
    fields = fields_of(pid)
    if fields[_THREADS] == b"1":
        return {fields[STATE]}
    states: set[bytes] = set()
    for thread in os.listdir(f"/proc/{pid}/task"):
        try:
            states.add(_fields_in(f"/proc/{pid}/task/{thread}/stat")[STATE])
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
    return states


def _fields_in(path: str) -> list[bytes]:
    with open(path, "rb", buffering=0) as file:
        text = file.read(4096)
    # The command stands in parentheses, and may itself hold spaces and parentheses.
    return text[text.rindex(b")") + 2 :].split()


def is_stopped(pid: int) -> bool:
    """Whether a signal, or a debugger, has stopped a process. False where that cannot be told (not on Linux,
    without a descriptor).
    """
    try:
        return fields_of(pid)[STATE] in _STOPPED
    except OSError:
        return False
