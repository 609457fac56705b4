"""`python -m mpkit demo`: index the standard library's sources with every part of mpkit at once.

The work is real, and its result can be checked. A `TaskPool` parses and measures every Python file
(`measure`). Its workers send what they have found through a `BoundedQueue` to a `WorkerProcess`, which writes
it into a SQLite database (`store`); `LockedCounter`s count what has been done (`index`); and a thread watches
all processes (`observer`, `progress`). Afterwards the same work is done again in one process (`alone`), to
compare time and result (`report`).
"""

from __future__ import annotations
