"""The order in which other processors see this process's stores to shared memory."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final

__all__ = ["TOTAL_STORE_ORDER", "full_fence"]


def _machine() -> str:
    if sys.platform == "win32":
        return ""  # nothing that needs fences can be made there
    # All that `platform` knows here, without loading it in every worker.
    return os.uname().machine


TOTAL_STORE_ORDER: Final = _machine().lower() in {
    "x86_64",
    "amd64",
    "i386",
    "i586",
    "i686",
    "x86",
    "s390x",
}
"""Whether every processor sees the stores of another in program order, and loads likewise (x86, s390x).

CPython's interpreter never reorders two stores through a memoryview, so there a plain store is enough."""

if TOTAL_STORE_ORDER:

    def full_fence() -> None:
        """Keep loads and stores before this call before those after it (nothing to do here)."""

else:
    # An uncontended lock taken and given back twice: acquire keeps what follows behind it, release keeps what
    # comes before in front of it, and two cycles in a row leave no gap through which anything could pass
    # either way. CPython's locks are C11 atomics or pthread mutexes, both with acquire and release semantics.
    # One lock per call, not one for all: a fork while another thread held a shared one would block the child.

    def full_fence() -> None:
        """Keep loads and stores before this call before those after it."""
        lock = threading.Lock()
        with lock:
            pass
        with lock:
            pass
