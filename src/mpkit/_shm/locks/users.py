"""Whether anybody still needs the names of an object: who has it open, here or elsewhere, or may get a handle
to it.

Whoever closes one, or removes what a dead process has left (`remains`), asks here.
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
    """An object as this process has it open, as far as it matters here: whether it still is."""

    __slots__ = ("__weakref__", "closed")

    closed: bool


#: What this process has open, by the names of their files; `shared_object` keeps it.
open_here: weakref.WeakValueDictionary[str, Opened] = weakref.WeakValueDictionary()


class ForkMarks:
    """In the creator of an object: marks on its file that tell whether a forked child still has it open.

    (Such a child has no row before it uses the object.)

    Attributes:
        forked: whether there has been such a child.
    """

    __slots__ = ("_marks", "_segment", "forked")

    def __init__(self, segment: Segment) -> None:
        self._segment = segment
        self._marks: list[int] = []
        self.forked: bool = False

    def make(self) -> None:
        """A child is going to be forked."""
        self.forked = True
        if not self._marks:
            with contextlib.suppress(OSError):
                # Two threads that fork at the same time make one each, which does no harm.
                self._marks.append(use_marks.mark_of_its_own(self._segment.fd))

    def drop(self) -> bool:
        """Give back this process's copies of the marks; whether there were any."""
        dropped = False
        # IndexError: several threads may be at it. OSError: somebody has closed what is not his.
        with deferred_interrupts(), contextlib.suppress(IndexError, OSError):
            while True:
                mark = self._marks.pop()
                dropped = True
                os.close(mark)
        return dropped


def in_use_elsewhere(name: str, *, under_way: bool = False) -> bool:
    """Whether a living process has the object in the file `name` open or, if `under_way`, a handle to it may
    be under way to one. So it counts while this process has no descriptor or memory left to look.
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
    """The same of an object that has this table, `besides` what this process itself has open."""
    segment, words = rows.segment, rows.segment.words
    # Looked at first and last: who had it open, and has sent it on and closed it meanwhile, may be seen
    # neither here nor there.
    exports = words[EXPORTS]
    return (
        (under_way and words[UNDER_WAY] != 0)
        or _others(rows)
        # A child that was forked.
        or use_marks.is_marked(segment.fd)
        # A handle may have arrived here meanwhile.
        or _is_open_here(segment.name, besides)
        or words[EXPORTS] != exports
    )


def _is_open_here(name: str, besides: Opened | None = None) -> bool:
    """Whether this process has the object in that file open, as another one than `besides`."""
    known = open_here.get(name)
    return known is not None and known is not besides and not known.closed


def _others(rows: Rows) -> bool:
    me = identity.current()
    return any(process != me and identity.is_alive(process) for _, process in rows.taken())
