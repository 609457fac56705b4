"""`multiprocessing.sharedctypes`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.sharedctypes
import sys
from multiprocessing.sharedctypes import (
    Array,
    RawArray,
    RawValue,
    Synchronized,
    SynchronizedArray,
    SynchronizedBase,
    SynchronizedString,
    Value,
    copy,
    synchronized,
)

__all__ = [
    "Array",
    "RawArray",
    "RawValue",
    "Synchronized",
    "SynchronizedArray",
    "SynchronizedBase",
    "SynchronizedString",
    "Value",
    "copy",
    "synchronized",
]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.sharedctypes
