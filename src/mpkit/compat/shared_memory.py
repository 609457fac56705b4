"""`multiprocessing.shared_memory`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.shared_memory
import sys
from multiprocessing.shared_memory import (
    ShareableList,
    SharedMemory,
)

__all__ = [
    "ShareableList",
    "SharedMemory",
]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.shared_memory
