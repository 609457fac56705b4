"""The control groups of this process (Linux), in versions 1 and 2.

Paths are strings here: `pathlib` would be loaded for nothing else in every worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from os.path import join

__all__ = ["hierarchies", "lines_of"]


def hierarchies(controller: str, root: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """Where this process's groups are, for one kind of resource.

    Args:
        controller: Such as ``"cpu"`` or ``"memory"``.
        root: Where the file system begins; tests lay out one of their own.

    Yields:
        The version of the hierarchy, and the directories in it: that of the process's group first, then those
        of all the groups above it, whose limits hold for it as well.
    """
    for base, group, version in _groups(controller, os.fspath(root)):
        parts = [part for part in group if part != ".."]
        yield version, [join(base, *parts[:length]) for length in range(len(parts), -1, -1)]


def lines_of(path: str) -> list[str]:
    """The lines of a file; none if it is not there, or not for us to read: then no limit is known."""
    try:
        # A file for text costs twice as much to open, and each start of a worker reads one of these.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def _groups(controller: str, root: str) -> Iterator[tuple[str, list[str], int]]:
    """Mount point, this process's group below it, and version of each hierarchy with that controller."""
    own: dict[str, list[str]] = {}
    for line in lines_of(join(root, "proc/self/cgroup")):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = _parts(path)
    for line in lines_of(join(root, "proc/self/mountinfo")):
        # See proc(5): ... root, mount point, options, optional fields, "-", type, source, super options.
        before, _, after = line.partition(" - ")
        mounted, (kind, _, options) = before.split(" "), after.split(" ", 2)
        if kind == "cgroup2":
            name, version = "", 2
        elif kind == "cgroup" and controller in options.split(","):
            name, version = controller, 1
        else:
            continue
        if name in own:
            base = join(root, _unescape(mounted[4]).lstrip("/"))
            yield base, _below(own[name], _parts(_unescape(mounted[3]))), version


def _below(group: list[str], top: list[str]) -> list[str]:
    """The group's path below the mount point; a container often has only its own part mounted."""
    # Not below it: the group's path is that of another namespace ("/../.."), and what is mounted is all that
    # can be read.
    return group[len(top) :] if group[: len(top)] == top else []


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _unescape(path: str) -> str:
    """Mount points have their blanks as octal escapes."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
