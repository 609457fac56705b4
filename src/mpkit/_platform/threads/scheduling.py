"""Which threads run: whether this Python lets them run side by side, and letting others run."""

from __future__ import annotations

import os
import sys
import time
from typing import Final

__all__ = ["FREE_THREADED", "yield_cpu"]

FREE_THREADED: Final = "free-threading" in sys.version
"""Without a global interpreter lock, whether it has been switched on again or not.

`sysconfig` knows it as well, but takes a millisecond to load. Source: "Python support for free threading" in
Python's own documentation.
"""

# It lets go of the interpreter lock, and of the core if somebody else wants it; with nobody there it costs
# less than a microsecond.
yield_cpu = os.sched_yield if hasattr(os, "sched_yield") else lambda: time.sleep(0)
