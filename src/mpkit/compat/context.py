"""`multiprocessing.context` with mpkit's contexts and processes; all else is the standard library's own."""

from __future__ import annotations

import multiprocessing.context
import sys
from multiprocessing.context import (
    AuthenticationError,
    BufferTooShort,
    ProcessError,
    TimeoutError,  # noqa: A004  multiprocessing calls it so
)
from typing import TYPE_CHECKING, Any

from mpkit.compat._contexts import SpawnContext
from mpkit.compat._processes import Process, SpawnProcess

if TYPE_CHECKING:
    # So that the objects of a context are those of this package.
    from mpkit.compat._contexts import Context as BaseContext
else:
    from multiprocessing.context import BaseContext

__all__ = [
    "AuthenticationError",
    "BaseContext",
    "BufferTooShort",
    "Process",
    "ProcessError",
    "SpawnContext",
    "SpawnProcess",
    "TimeoutError",
]

if sys.platform != "win32":
    from mpkit.compat._contexts import ForkContext, ForkServerContext
    from mpkit.compat._processes import ForkProcess, ForkServerProcess

    __all__ += ["ForkContext", "ForkProcess", "ForkServerContext", "ForkServerProcess"]


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is there
    return getattr(multiprocessing.context, name)
