"""Whether threads run in parallel in this Python, and yielding the CPU."""

from __future__ import annotations

import os
import sys
import time
from typing import Final

FREE_THREADED: Final = "free-threading" in sys.version
"""Whether this Python is a free-threaded build, even if the global interpreter lock was switched on again.

`sysconfig` tells this, too, but takes a millisecond to load. This test is given in "Python support for free
threading" in Python's documentation.
"""

# Releases the interpreter lock, and the core if another thread or process wants it; otherwise this costs less
# than a microsecond.
yield_cpu = os.sched_yield if hasattr(os, "sched_yield") else lambda: time.sleep(0)
