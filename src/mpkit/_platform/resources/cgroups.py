"""The control groups of this process (Linux), in versions 1 and 2.

Paths are strings here, because `pathlib` would be loaded in every worker for this alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from os.path import join


def hierarchies(controller: str, root: str | os.PathLike[str]) -> Iterator[tuple[int, list[str]]]:
    """The directories of this process's control groups, for one kind of resource.

    Args:
        controller: Such as ``"cpu"`` or ``"memory"``.
        root: The root of the file system; tests use one of their own.

    Yields:
        The version of the hierarchy, and the directories in it: that of the process's group first, then those
        of all the groups above it, whose limits hold for it as well.
    """
    for base, group, version in _groups(controller, os.fspath(root)):
        parts = [part for part in group if part != ".."]
        yield version, [join(base, *parts[:length]) for length in range(len(parts), -1, -1)]


def lines_of(path: str) -> list[str]:
    """The lines of a file; none if it does not exist or may not be read."""
    try:
        # In binary mode, because opening a text file takes twice as long, and each start of a worker reads
        # one.
        with open(path, "rb", buffering=0) as file:
            return file.read().decode("utf-8", "surrogateescape").splitlines()
    except OSError:
        return []


def _groups(controller: str, root: str) -> Iterator[tuple[str, list[str], int]]:
    """For each hierarchy with that controller: mount point, this process's group below it, and version."""
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
    """The group's path below the mount point. A container often has only a part of the hierarchy mounted."""
    # If the group is not below it, its path is relative to another namespace ("/../.."), and only the mounted
    # directory itself can be read.
    return group[len(top) :] if group[: len(top)] == top else []


def _parts(path: str) -> list[str]:
    return [part for part in path.split("/") if part]


def _unescape(path: str) -> str:
    """Undo the octal escapes for blanks and backslashes in mount points."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
