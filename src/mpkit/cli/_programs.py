"""The programs that `ps` and `top` show: a certain one, or all that have an mpkit object open."""

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

NONE_FOUND = "No process of this user has an mpkit pool, queue, lock or counter open."


def look(
    pid: int | None, load: Callable[[list[ProcessSnapshot]], Mapping[int, float]] | None = None
) -> Iterator[list[str]]:
    """Look at one program after the other, and yield the lines that show it.

    If such a program ends before it is looked at, it is left out; if it may not be examined, a
    line says so. For a program that was asked for by `pid`, these are errors.

    Args:
        pid: the topmost process; None: every program of this user that has an mpkit object open.
        load: returns the CPU share of processes, by pid; None: show the mean over their lives.

    Raises:
        ProcessGone, AccessDenied: there is no process `pid`, or it may not be examined.
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
