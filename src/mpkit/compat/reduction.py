"""`multiprocessing.reduction`: the standard library's own module."""

from __future__ import annotations

import multiprocessing.reduction
import sys
from multiprocessing.reduction import (
    AbstractReducer,
    ForkingPickler,
    dump,
    recv_handle,
    register,
    send_handle,
)

__all__ = [
    "AbstractReducer",
    "ForkingPickler",
    "dump",
    "recv_handle",
    "register",
    "send_handle",
]

if sys.platform != "win32":
    from multiprocessing.reduction import DupFd

    __all__ += ["DupFd"]

# The module itself, so that every name in it is here as well.
sys.modules[__name__] = multiprocessing.reduction
