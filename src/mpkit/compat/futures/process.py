"""`concurrent.futures.process`, but with mpkit's `ProcessPoolExecutor`, and the cause of its errors."""

from __future__ import annotations

import concurrent.futures.process
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from mpkit._wire.failure import RemoteTraceback
from mpkit.compat.futures import ProcessPoolExecutor

__all__ = ["BrokenProcessPool", "ProcessPoolExecutor"]

# Private in the standard library as well, but programs use it nevertheless.
_RemoteTraceback = RemoteTraceback


def __getattr__(name: str) -> Any:  # noqa: ANN401  whatever is there
    return getattr(concurrent.futures.process, name)
