"""``/proc/<pid>/stat``, where Linux tells the most about a process at the price of one file."""

from __future__ import annotations

__all__ = ["ENDED", "PARENT", "STARTED", "STATE", "SYSTEM_TICKS", "USER_TICKS", "fields_of", "is_stopped"]

# Where a field is in what `fields_of` returns; proc(5) counts from 1, and two more in front.
STATE, PARENT, USER_TICKS, SYSTEM_TICKS, STARTED = 0, 1, 11, 12, 19

#: States of a process that has ended; nobody has waited for it yet.
ENDED = (b"Z", b"X", b"x")


def fields_of(pid: int) -> list[bytes]:
    """The fields behind the pid and the command.

    Raises:
        OSError: If there is no such process, it is hidden from us, or there is no descriptor or memory left.
    """
    with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
        text = file.read(4096)
    # The command stands in parentheses, and may itself hold spaces and parentheses.
    return text[text.rindex(b")") + 2 :].split()


def is_stopped(pid: int) -> bool:
    """Whether a signal, or a debugger, has stopped a process. False where that cannot be told (not on Linux,
    without a descriptor).
    """
    try:
        return fields_of(pid)[STATE] in (b"T", b"t")
    except OSError:
        return False
