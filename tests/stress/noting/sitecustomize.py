# ruff: noqa: INP001  (not in a package: Python imports it by its name, from PYTHONPATH)
"""For `test_parent_death`: each Python process of its programs records its pid and start time when it starts.

A name in shared memory contains the pid and the start time of its creator. So the test can tell which names
its programs made.
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
