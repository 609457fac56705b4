"""`python -m mpkit demo`: index the standard library's sources with every part of mpkit at once.

The work is real and its result can be checked: a `TaskPool` parses and measures every Python file
(`measure`), the workers send what they found through a `BoundedQueue` to a `WorkerProcess` that writes it
to a SQLite database (`store`), and `LockedCounter`s say how far it has got (`index`). Afterwards the same
work is done once more in one process (`alone`), so that time and result can be compared (`report`).
"""

from __future__ import annotations
