"""multiprocessing's resource tracker, which removes names when every process of the application is gone.

It is a process of its own that outlives a SIGKILL. A garbage collection may come while a thread talks to it,
and a ``__del__`` take a name back: that would wait for its own thread for ever (Python 3.10), or be refused
with a warning. So names are taken back through a list, and whoever finds its thread in the middle of a call
leaves it to the next one.
"""

from __future__ import annotations

import contextlib
import sys
from collections import deque
from collections.abc import Generator, Sequence

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes, seam
from mpkit._platform.stdlib.seam import TrackedType, TrackerMessage
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import is_free

__all__ = ["in_one_message", "tell", "track", "untrack", "untrack_at_once"]

#: Names that it is still to forget.
_untold: deque[tuple[str, TrackedType]] = deque()
#: One for each block of `in_one_message` that a thread is in, and how many names may wait for its end: a
#: process that is killed meanwhile has noted them.
_blocks: deque[None] = deque()
_MOST_WAIT = 16


def track(names: Sequence[str], rtype: TrackedType) -> None:
    """Have these names, which start with a slash, removed when all is over."""
    for name in names:
        notes.note(name, rtype)
    seam.tell_tracker([("REGISTER", name, rtype) for name in names])
    tell()


def untrack(name: str, rtype: TrackedType) -> None:
    """Take back `track`: the name has been removed. May be called by a ``__del__`` at any moment."""
    _untold.append((name, rtype))
    tell()


def untrack_at_once(name: str, rtype: TrackedType) -> None:
    """The same for a name that is going to be tracked again: it is forgotten before this returns.

    (Through the list another thread might tell it later, and so of the next use of the name.) Not for a
    ``__del__``.
    """
    seam.tell_tracker([("UNREGISTER", name, rtype)])


@contextlib.contextmanager
def in_one_message() -> Generator[None]:
    """What is untracked in the block, it is told at the end of that."""
    _blocks.append(None)
    try:
        yield
    finally:
        # IndexError: this process has been forked in the block.
        with deferred_interrupts(), contextlib.suppress(IndexError):
            _blocks.pop()
            tell()


def tell() -> None:
    """Have it forget what is to be forgotten, unless this thread is just talking to it."""
    if not _untold or (_blocks and len(_untold) < _MOST_WAIT) or _is_talking():
        return
    messages: list[TrackerMessage] = []
    with contextlib.suppress(IndexError):
        # Several threads may be at it.
        while True:
            messages.append(("UNREGISTER", *_untold.popleft()))
    seam.tell_tracker(messages)


@in_forked_children
def _forget_after_fork() -> None:
    # The parent tells it, and it is the same one: told a second time it complains of a name that it does not
    # know.
    _untold.clear()
    _blocks.clear()


def _is_talking() -> bool:
    if sys.platform == "win32":
        return False
    lock = seam.tracker_lock()
    if hasattr(lock, "_is_owned"):
        return bool(lock._is_owned())
    # Before 3.11.6 the lock does not know who has it: perhaps this thread.
    return not is_free(lock)
