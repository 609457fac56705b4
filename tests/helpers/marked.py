"""Find every process that a program has started, directly or not.

A child inherits its parent's environment, and Linux shows the environment of every process of the same user.
So a unique variable marks all descendants: also those whose parents have died, and the helper processes (the
guardian, the fork server, the resource tracker).
"""

from __future__ import annotations

import os
import uuid

__all__ = ["NAME", "Mark"]

#: The name of the environment variable.
NAME = "MPKIT_TEST_MARK"


class Mark:
    """The mark of one program and all its descendants."""

    def __init__(self) -> None:
        self.text = uuid.uuid4().hex

    @property
    def environment(self) -> dict[str, str]:
        """The environment variable with which the program has to be started."""
        return {NAME: self.text}

    def living(self) -> dict[int, str]:
        """The pids and command lines of the marked processes that run (a zombie has no environment)."""
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
                continue  # it has ended in the meantime, or belongs to another user
        return found
