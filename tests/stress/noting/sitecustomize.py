# ruff: noqa: INP001  (no package: it is found by its name)
"""For the programs of `test_parent_death`: every Python process of theirs notes who it is when it starts.

So a name in shared memory, in which its creator's pid and start stand, is known to be one of theirs.
"""

from __future__ import annotations

import os

_STARTED = 19


def _note() -> None:
    with open("/proc/self/stat", "rb") as file:
        text = file.read()
    started = int(text[text.rindex(b")") + 2 :].split()[_STARTED])
    path = os.path.join(os.environ["MPKIT_TEST_NOTES"], f"process-{os.getpid()}-{started}")
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


if "MPKIT_TEST_NOTES" in os.environ:
    _note()
    os.register_at_fork(after_in_child=_note)
