"""``/proc/<pid>/stat``, the file in which Linux tells most about a process."""

from __future__ import annotations

import os
from typing import Final

# The indices of fields in the result of `fields_of`. (proc(5) counts from 1, and has two more fields in
# front.)
STATE, PARENT, USER_TICKS, SYSTEM_TICKS, _THREADS, STARTED = 0, 1, 11, 12, 17, 19

#: The states of a process that has ended and has not been reaped.
ENDED = (b"Z", b"X", b"x")

#: The states of a thread that was stopped by a signal or a debugger.
_STOPPED: Final = (b"T", b"t")

#: The states of a thread that does not run unless it is continued, or never again.
NOT_RUNNING: Final = frozenset({*_STOPPED, *ENDED})


def fields_of(pid: int) -> list[bytes]:
    """The fields that follow the pid and the command.

    Raises:
        OSError: If there is no such process, it is hidden from this user, or there is no descriptor or memory
            left.
    """
    return _fields_in(f"/proc/{pid}/stat")


def thread_states(pid: int) -> set[bytes]:
    """The set of the states in which the threads of a process are.

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
    # The command is in parentheses, and may itself contain spaces and parentheses.
    return text[text.rindex(b")") + 2 :].split()


def is_stopped(pid: int) -> bool:
    """Whether a process is stopped by a signal or a debugger; False if not known (as outside Linux)."""
    try:
        return fields_of(pid)[STATE] in _STOPPED
    except OSError:
        return False
