"""`multiprocessing.process`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.process
import sys
from multiprocessing.process import (
    BaseProcess,
    active_children,
    current_process,
    parent_process,
)

__all__ = [
    "BaseProcess",
    "active_children",
    "current_process",
    "parent_process",
]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.process
