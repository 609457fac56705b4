"""Whether somebody has put greenlets in the place of threads: gevent and eventlet do, in the whole process.

A greenlet runs until it gives way, and waiting for a semaphore of multiprocessing is no place where it could:
what looks like several threads stands still together.
"""

from __future__ import annotations

import sys

__all__ = ["patched_by"]

# Where each library tells what it has replaced: its module, the function to ask, and what to ask for. Both
# replace the waiting for descriptors as well, which then does not see every one that is ready.
_LIBRARIES = (
    ("gevent", "gevent.monkey", "is_module_patched", ("threading", "select")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread", "select")),
)


def patched_by() -> str | None:
    """The name of the library that has replaced threads, or the waiting for descriptors, in this process."""
    for library, module_name, question, subjects in _LIBRARIES:
        # Not imported here: where nobody has, nothing is replaced.
        is_patched = getattr(sys.modules.get(module_name), question, None)
        if is_patched is not None and any(is_patched(subject) for subject in subjects):
            return library
    return None
