"""How a child dies with its parent, however the parent dies.

- `parent_watch`: what parent and child do for it
- `guardian`: the process that kills the children
- `guardian_process`: starting it
- `guardian_line`: by what it is told
"""

from __future__ import annotations
