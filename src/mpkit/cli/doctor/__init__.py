"""`python -m mpkit doctor`: is this machine fit for mpkit, and did anything stay behind?

`checks` finds out, each check on its own; `leftovers` knows what dead processes left in shared memory;
`command` prints.
"""

from __future__ import annotations
