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

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.connection
