"""Forks without CPython's warning that the process has threads: the user has asked for the fork context.

CPython issues the warning from 3.12 on, in the parent and after the fork. If warnings are errors, the parent
would get an exception although there is a child.
"""

from __future__ import annotations

import contextlib
import re
import sys
import threading
import warnings
from collections.abc import Generator
from typing import Any, cast

from mpkit._platform.threads.forks import in_forked_children

# The named group makes it different from any filter of the application, so that none
# of these is removed instead.
_FILTER = ("ignore", re.compile("(?P<mpkit>.*fork.*)", re.IGNORECASE), DeprecationWarning, None, 0)

# The latest block of each thread, on Pythons on which threads have their own warning filters.
_of_this_thread = threading.local()


@contextlib.contextmanager
def without_fork_warning(method: str) -> Generator[None]:
    """A block that starts a process by the start method `method`. Only one thread at a time may be in it."""
    if method != "fork" or sys.version_info < (3, 12):
        yield
    elif getattr(sys.flags, "context_aware_warnings", False):
        # Each thread has its own filters.
        with contextlib.ExitStack() as block:
            block.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
            _of_this_thread.block = block
            yield
    else:
        with _one_more_filter():
            yield


@contextlib.contextmanager
def _one_more_filter() -> Generator[None]:
    # Not with `catch_warnings`: at its end it restores the old filters, and undoes what other threads have
    # changed meanwhile. If another thread enters or leaves its own `catch_warnings` meanwhile,
    # `warnings.filters` is another list at the end: so the filter is removed from both.
    before = _filters()
    before.insert(0, _FILTER)
    try:
        yield
    finally:
        for filters in (before, _filters()):
            with contextlib.suppress(ValueError):
                filters.remove(_FILTER)


@in_forked_children
def _take_away() -> None:
    """In the child, which never leaves the block: its tasks are to get the warning as usual."""
    block = getattr(_of_this_thread, "block", None)
    if block is not None:
        # Does nothing if the block has been left.
        block.close()
    with contextlib.suppress(ValueError):
        _filters().remove(_FILTER)


def _filters() -> list[Any]:
    return cast("list[Any]", warnings.filters)
