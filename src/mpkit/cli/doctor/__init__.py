"""`python -m mpkit doctor`: whether mpkit works on this machine, and whether dead
processes have left anything.

`checks` has the single checks, and `finding` what they return; `leftovers` finds what dead processes have
left in shared memory; `command` prints all of this.
"""

from __future__ import annotations
