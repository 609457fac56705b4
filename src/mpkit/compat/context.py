"""`multiprocessing.context`, but with mpkit's contexts and processes."""

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
    # For type checkers, the methods of a context create the objects of this package.
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
