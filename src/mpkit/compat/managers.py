"""`multiprocessing.managers`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.managers
import sys
from multiprocessing.managers import (
    BaseManager,
    BaseProxy,
    DictProxy,
    ListProxy,
    Namespace,
    Server,
    SharedMemoryManager,
    SyncManager,
    Token,
    ValueProxy,
)

__all__ = [
    "BaseManager",
    "BaseProxy",
    "DictProxy",
    "ListProxy",
    "Namespace",
    "Server",
    "SharedMemoryManager",
    "SyncManager",
    "Token",
    "ValueProxy",
]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.managers
