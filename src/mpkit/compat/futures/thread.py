"""`concurrent.futures.thread`: the standard library's own module."""

from __future__ import annotations

import concurrent.futures.thread
import sys
from concurrent.futures.thread import (
    BrokenThreadPool,
    ThreadPoolExecutor,
)

__all__ = [
    "BrokenThreadPool",
    "ThreadPoolExecutor",
]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = concurrent.futures.thread
