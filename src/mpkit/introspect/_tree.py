"""`tree`: a process with all its descendants."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import psutil

from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect._processes import ProcessSnapshot, read
from mpkit.introspect._translate import checked_pid, find, translated

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator


@dataclass(frozen=True)
class ProcessTree:
    """A process with its descendants.

    Attributes:
        process: The process itself.
        children: The trees of its children, oldest first.
    """

    process: ProcessSnapshot
    children: tuple[ProcessTree, ...] = field(default=())

    def walk(self) -> Iterator[ProcessSnapshot]:
        """Yield the process, then its descendants: each parent before its children, older children first."""
        for tree, _ in self._outline():
            yield tree.process

    # The methods that a dataclass generates are recursive: they would raise a RecursionError for a chain of a
    # thousand processes, each of which has started the next one. These use the
    # outline of the tree, a flat list.

    def __eq__(self, other: object) -> bool:
        if other.__class__ is not self.__class__:
            return NotImplemented
        assert isinstance(other, ProcessTree)
        return self._outline_of_values() == other._outline_of_values()

    def __hash__(self) -> int:
        return hash(self._outline_of_values())

    def __reduce__(self) -> tuple[Callable[..., ProcessTree], tuple[object, ...]]:
        return _folded, (self._outline_of_values(),)

    def __repr__(self) -> str:
        pieces: list[str] = []
        pending: list[ProcessTree | str] = [self]
        while pending:
            item = pending.pop()
            if isinstance(item, str):
                pieces.append(item)
                continue
            pieces.append(f"{type(item).__qualname__}(process={item.process!r}, children=(")
            pending.append(",))" if len(item.children) == 1 else "))")
            for number, child in reversed(list(enumerate(item.children))):
                pending += [child, ", "] if number else [child]
        return "".join(pieces)

    def _outline(self) -> Iterator[tuple[ProcessTree, int]]:
        """Each subtree in the order of `walk`, with the number of its children."""
        pending: list[ProcessTree] = [self]
        while pending:
            tree = pending.pop()
            yield tree, len(tree.children)
            pending.extend(reversed(tree.children))

    def _outline_of_values(self) -> tuple[tuple[ProcessSnapshot, int], ...]:
        return tuple((tree.process, children) for tree, children in self._outline())


def tree(pid: int | None = None) -> ProcessTree:
    """Look at a process and all its descendants once.

    The kernel has no consistent view of many processes: they are read one after the other. A descendant that
    ends in the meantime, or that this user may not examine, is left out together with its own descendants.

    Args:
        pid: The process at the top. None, the default, is the calling process.

    Returns:
        The tree; the children of each process are sorted by the time when they were started.

    Raises:
        ProcessGone: There is no process `pid`, or it ended while being looked at.
        AccessDenied: The system does not allow this user to examine process `pid` itself.
        TypeError, ValueError: `pid` is not an integer, or negative.

    Blocking: never.
    Safe from: any thread, any process.

    Examples:
        >>> import os
        >>> tree().process.pid == os.getpid()
        True
    """
    root = find(checked_pid(pid))
    with translated(root.pid):
        # A single pass over the process table. psutil leaves out children that are older than their parent,
        # because that parent has a reused pid.
        descendants = root.children(recursive=True)
    return _assemble(read(root), _by_parent(descendants))


def _by_parent(processes: list[psutil.Process]) -> dict[int, list[ProcessSnapshot]]:
    children: defaultdict[int, list[ProcessSnapshot]] = defaultdict(list)
    for process in processes:
        try:
            seen = read(process)
        except (ProcessGone, AccessDenied):
            continue
        children[seen.ppid].append(seen)
    return children


def _assemble(top: ProcessSnapshot, children: dict[int, list[ProcessSnapshot]]) -> ProcessTree:
    outline: list[tuple[ProcessSnapshot, int]] = []
    pending = [top]
    while pending:
        process = pending.pop()
        # Removed from the dictionary, so that a process that was seen under two parents cannot form a cycle.
        mine = sorted(children.pop(process.pid, ()), key=lambda child: (child.create_time, child.pid))
        outline.append((process, len(mine)))
        pending.extend(reversed(mine))
    return _folded(outline)


def _folded(outline: Iterable[tuple[ProcessSnapshot, int]]) -> ProcessTree:
    """The tree with this outline (see `ProcessTree._outline`)."""
    # Read backwards, an outline has each process after its children, and the oldest child last.
    trees: list[ProcessTree] = []
    for process, children in reversed(list(outline)):
        first = len(trees) - children
        mine = tuple(reversed(trees[first:]))
        del trees[first:]
        trees.append(ProcessTree(process, mine))
    (tree,) = trees
    return tree
