"""How a child dies with its parent, however the parent dies.

- `parent_watch`: what the parent and the child do
- `guardian`: the process that kills the children
- `guardian_process`: starting the guardian
- `guardian_line`: the socket through which the guardian is told
"""

from __future__ import annotations
