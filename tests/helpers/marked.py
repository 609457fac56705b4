"""All processes that a program has brought into the world, wherever they have got to.

What a process starts gets its environment. So a mark there, which Linux shows for every process of the same
user, names all descendants, also those whose parents have died, and the helpers (the guardian, the fork
server, the resource tracker).
"""

from __future__ import annotations

import os
import uuid

__all__ = ["NAME", "Mark"]

#: The variable.
NAME = "MPKIT_TEST_MARK"


class Mark:
    """One program's."""

    def __init__(self) -> None:
        self.text = uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        """What the program has to be started with."""
        return {NAME: self.text}

    def living(self) -> dict[int, str]:
        """Those that run, by pid, with their command lines. A zombie has no environment any more."""
        found: dict[int, str] = {}
        mark = f"{NAME}={self.text}".encode()
        for entry in os.listdir("/proc"):
            if not entry.isdigit():
                continue
            try:
                with open(f"/proc/{entry}/environ", "rb") as file:
                    if mark not in file.read().split(b"\0"):
                        continue
                with open(f"/proc/{entry}/cmdline", "rb") as file:
                    found[int(entry)] = file.read().replace(b"\0", b" ").decode(errors="replace")
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # ended meanwhile, or another user's
        return found
