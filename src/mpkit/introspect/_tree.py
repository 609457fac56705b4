"""`tree`: a process and everything it started."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect._processes import ProcessSnapshot, read
from mpkit.introspect._translate import checked_pid, find, translated

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True)
class ProcessTree:
    """A process with its descendants.

    Attributes:
        process: the process itself.
        children: the trees of its children, oldest first.
    """

    process: ProcessSnapshot
    children: tuple[ProcessTree, ...] = field(default=())

    def walk(self) -> Iterator[ProcessSnapshot]:
        """Yield the process, then its descendants: each parent before its children, older children first."""
        yield self.process
        for child in self.children:
            yield from child.walk()


def tree(pid: int | None = None) -> ProcessTree:
    """Look at a process and all its descendants once.

    The kernel has no call for a consistent picture of many processes: each one is looked at in its turn. A
    descendant that ends meanwhile, or that may not be looked at, is left out together with what is under it.

    Args:
        pid: the process on top. None, the default, is the calling process.

    Returns:
        The tree, children sorted by the time they were started.

    Raises:
        ProcessGone: there is no process `pid`, or it ended while being looked at.
        AccessDenied: the system does not let this user look at process `pid` itself.
        TypeError, ValueError: `pid` is no integer, or negative.

    Blocking: no.
    Safe from: any thread, any process.

    Examples:
        >>> [process.pid for process in tree().walk()][0] == snapshot().pid
        True
    """
    root = find(checked_pid(pid))
    with translated(root.pid):
        # One pass over the process table; psutil leaves out a "child" older than its parent, which is how a
        # reused parent pid shows.
        descendants = root.children(recursive=True)
    return _assemble(read(root), _by_parent(descendants))


def _by_parent(processes: list[psutil.Process]) -> dict[int, list[ProcessSnapshot]]:
    children: defaultdict[int, list[ProcessSnapshot]] = defaultdict(list)
    for process in processes:
        try:
            picture = read(process)
        except (ProcessGone, AccessDenied):
            continue
        children[picture.ppid].append(picture)
    return children


def _assemble(top: ProcessSnapshot, children: dict[int, list[ProcessSnapshot]]) -> ProcessTree:
    mine = sorted(children.pop(top.pid, ()), key=lambda child: (child.create_time, child.pid))
    return ProcessTree(top, tuple(_assemble(child, children) for child in mine))
