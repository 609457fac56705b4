"""`multiprocessing.connection`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.connection
import sys
from multiprocessing.connection import (
    Client,
    Connection,
    Listener,
    Pipe,
    wait,
)

__all__ = [
    "Client",
    "Connection",
    "Listener",
    "Pipe",
    "wait",
]

# The very module, so that all that is in it is here as well.
sys.modules[__name__] = multiprocessing.connection
