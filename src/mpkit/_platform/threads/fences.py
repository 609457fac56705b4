"""Memory order: the order in which other processors see this process's stores to shared memory."""

from __future__ import annotations

import os
import sys
import threading
from typing import Final


def _machine() -> str:
    if sys.platform == "win32":
        return ""  # on Windows, objects that need fences cannot be created
    # The same as `platform.machine()`, without loading that module in every worker.
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
"""Whether stores become visible to other processors in program order, and loads are performed in order.

(So on x86 and s390x.) CPython's interpreter never reorders two stores through a memoryview, so on these
machines a plain store is enough. (A load may still overtake an earlier store there; code for which this
matters needs a full barrier on every machine.)
"""

if TOTAL_STORE_ORDER:

    def full_fence() -> None:
        """Keep the order of stores, and that of loads, across this call (nothing to do here)."""

else:
    # An uncontended lock is acquired and released twice: acquiring keeps later accesses behind it, releasing
    # keeps earlier ones before it, and two cycles in a row leave no gap through which an access could pass
    # either way. CPython's locks are C11 atomics or pthread mutexes, both with acquire and release semantics.
    # There is a new lock for each call, because with a shared one a fork while another thread holds it would
    # block the child.

    def full_fence() -> None:
        """Keep all loads and stores before this call before those after it."""
        lock = threading.Lock()
        with lock:
            pass
        with lock:
            pass
