"""Tells whether the names of an object are still needed: a process has it open, or may get a handle to it.

This is asked when an object is closed, and when the names of a dead process are removed (`remains`).
"""

from __future__ import annotations

import contextlib
import os
import weakref

from mpkit._platform.files import use_marks
from mpkit._platform.processes import identity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._shm.locks.shared_file import EXPORTS, MOST_ROWS, ROWS_AT, ROWS_USED, UNDER_WAY
from mpkit._shm.memory.rows import Rows
from mpkit._shm.memory.segment import Segment
from mpkit.errors import HandleLost


class Opened:
    """The base of `SharedObject`, with what this module needs: whether this process has closed the object."""

    __slots__ = ("__weakref__", "closed")

    closed: bool


#: The objects that this process has open, by the names of their files. Maintained by `shared_object`.
open_here: weakref.WeakValueDictionary[str, Opened] = weakref.WeakValueDictionary()


class ForkMarks:
    """In the creator of an object: marks on its file that tell whether a forked child still has it open.

    A forked child has no row before it first uses the object. It inherits the mark instead, which exists as
    long as any process has it open.

    Attributes:
        forked: whether a child was ever forked.
    """

    __slots__ = ("_marks", "_segment", "forked")

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._marks: list[int] = []
        self.forked: bool = False

    def make(self) -> None:
        """A child is about to be forked: make a mark, unless there is one."""
        self.forked = True
        if not self._marks:
            with contextlib.suppress(OSError):
                # Two threads that fork at the same time may make one each, which does no harm.
                self._marks.append(use_marks.mark_of_its_own(self._segment.fd))

    def drop(self) -> bool:
        """Close this process's copies of the marks; return whether there were any."""
        dropped = False
        # IndexError: there is none left. OSError: other code has closed the descriptor.
        with deferred_interrupts(), contextlib.suppress(IndexError, OSError):
            while True:
                mark = self._marks.pop()
                dropped = True
                os.close(mark)
        return dropped


def in_use_elsewhere(name: str, *, under_way: bool = False) -> bool:
    """Whether a living process has the object in the file `name` open.

    If `under_way`, also whether a handle to it may be under way to a process. If this process has no
    descriptor or memory left to look, the answer is yes.
    """
    if _is_open_here(name):
        return True
    try:
        segment = Segment.attach(name)
    except (HandleLost, ValueError):
        return False
    except OSError:
        return True
    try:
        words = segment.words
        rows = Rows(segment, start=words[ROWS_AT], capacity=MOST_ROWS, used_at=ROWS_USED)
        return is_in_use(rows, under_way=under_way)
    finally:
        segment.close()


def is_in_use(rows: Rows, *, under_way: bool, besides: Opened | None = None) -> bool:
    """The same for the object with this table, not counting that this process has it open as `besides`."""
    segment, words = rows.segment, rows.segment.words
    # Compared at the end: a process that sends a handle on and then closes the object during this function
    # could otherwise be missed both as a user and as a sender.
    exports = words[EXPORTS]
    return (
        (under_way and words[UNDER_WAY] != 0)
        or _others(rows)
        # A child that was forked.
        or use_marks.is_marked(segment.fd)
        # A handle may have arrived in this process.
        or _is_open_here(segment.name, besides)
        or words[EXPORTS] != exports
    )


def _is_open_here(name: str, besides: Opened | None = None) -> bool:
    """Whether this process has the object in the file `name` open, other than as `besides`."""
    known = open_here.get(name)
    return known is not None and known is not besides and not known.closed


def _others(rows: Rows) -> bool:
    me = identity.current()
    return any(process != me and identity.is_alive(process) for _, process in rows.taken())
