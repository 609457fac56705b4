"""The programs that `ps` and `top` show: the one that was named, or every one that uses mpkit."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from mpkit import introspect
from mpkit.cli import _render
from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect import _segments

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from mpkit.introspect import ProcessSnapshot

NONE_FOUND = "No process of this user has an mpkit pool or queue open."


def look(
    pid: int | None, load: Callable[[list[ProcessSnapshot]], Mapping[int, float]] | None = None
) -> Iterator[list[str]]:
    """Look at one program after the other, and yield the lines that show it.

    Programs come and go between the list and the look: one that has ended is left out, and one that may not
    be looked at has a line that says so. Only what was asked for by number must be there.

    Args:
        pid: the process on top; None for every program of this user that uses mpkit.
        load: what tells the CPU share of processes, by pid; None for the mean over their lives.

    Raises:
        ProcessGone, AccessDenied: process `pid` cannot be looked at.
    """
    for top in _segments.programs() if pid is None else [pid]:
        try:
            tree = introspect.tree(top)
        except ProcessGone:
            if pid is not None:
                raise
        except AccessDenied as error:
            if pid is not None:
                raise
            yield [str(error.strerror)]
        else:
            percent = None if load is None else load(list(tree.walk()))
            yield _render.program(tree, now=time.time(), cpu_percent=percent)
