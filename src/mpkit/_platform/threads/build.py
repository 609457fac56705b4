"""How this Python was built."""

from __future__ import annotations

import sys
from typing import Final

__all__ = ["FREE_THREADED"]

FREE_THREADED: Final = "free-threading" in sys.version
"""Without a global interpreter lock, whether it has been switched on again or not.

`sysconfig` knows it as well, but takes a millisecond to load. Source: "Python support for free threading" in
Python's own documentation.
"""
