"""Whether a library (gevent or eventlet) has replaced threads by greenlets, in the whole process.

A greenlet runs until it yields, and it cannot yield while it waits for a semaphore of multiprocessing. So all
greenlets of a thread would stop together.
"""

from __future__ import annotations

import sys

# How each library tells what it has replaced: its name, its module, the function to ask, and what to ask for.
# Both also replace waiting for descriptors, which then does not report all that are ready.
_LIBRARIES = (
    ("gevent", "gevent.monkey", "is_module_patched", ("threading", "select")),
    ("eventlet", "eventlet.patcher", "is_monkey_patched", ("thread", "select")),
)


def patched_by() -> str | None:
    """The name of the library that has replaced threads, or waiting for descriptors, here; else None."""
    for library, module_name, question, subjects in _LIBRARIES:
        # Not imported: if the program has not loaded it, nothing has been replaced.
        is_patched = getattr(sys.modules.get(module_name), question, None)
        if is_patched is not None and any(is_patched(subject) for subject in subjects):
            return library
    return None
