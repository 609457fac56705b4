"""Forking a process that has threads, without the warning: the caller has asked for it with the fork context.

From 3.12 on CPython warns of it, in the parent and after the fork. Where warnings are
errors, the parent would get an exception for a child that lives.
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

# The group makes it unlike any filter of the application, which must not be removed in its place.
_FILTER = ("ignore", re.compile("(?P<mpkit>.*fork.*)", re.IGNORECASE), DeprecationWarning, None, 0)

# The latest block of a thread that has filters of its own.
_of_this_thread = threading.local()


@contextlib.contextmanager
def without_fork_warning(method: str) -> Generator[None]:
    """Start a process in this block by the start method `method`. One thread at a time."""
    if method != "fork" or sys.version_info < (3, 12):
        yield
    elif getattr(sys.flags, "context_aware_warnings", False):
        # Filters are not shared with other threads.
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
    # Not by `catch_warnings`: in the end that puts back what there was, and away what other threads have
    # changed meanwhile. Should one of them be in a `catch_warnings` of its own, there are two lists.
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
    """In the child, which never comes to the end of that block: its tasks shall be warned as ever."""
    block = getattr(_of_this_thread, "block", None)
    if block is not None:
        # Does nothing where it is over.
        block.close()
    with contextlib.suppress(ValueError):
        _filters().remove(_FILTER)


def _filters() -> list[Any]:
    return cast("list[Any]", warnings.filters)
