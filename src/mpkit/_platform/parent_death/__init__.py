"""How a child dies with its parent, however the parent dies.

- `parent_watch`: what parent and child do for it
- `guardian`: the process that kills the children
"""

from __future__ import annotations
