"""The control groups of this process (Linux), in versions 1 and 2."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

__all__ = ["hierarchies", "lines_of"]


def hierarchies(controller: str, root: Path) -> Iterator[tuple[int, list[Path]]]:
    """Where this process's groups are, for one kind of resource.

    Args:
        controller: Such as ``"cpu"`` or ``"memory"``.
        root: Where the file system begins; tests lay out one of their own.

    Yields:
        The version of the hierarchy, and the directories in it: that of the process's group first, then those
        of all the groups above it, whose limits hold for it as well.
    """
    for base, group, version in _groups(controller, root):
        parts = [part for part in group.parts if part not in ("/", "..")]
        yield version, [base.joinpath(*parts[:length]) for length in range(len(parts), -1, -1)]


def lines_of(path: Path) -> list[str]:
    """The lines of a file; none if it is not there, or not for us to read: then no limit is known."""
    try:
        return path.read_text().splitlines()
    except OSError:
        return []


def _groups(controller: str, root: Path) -> Iterator[tuple[Path, PurePosixPath, int]]:
    """Mount point, this process's group below it, and version of each hierarchy with that controller."""
    own: dict[str, PurePosixPath] = {}
    for line in lines_of(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        for name in controllers.split(","):
            own[name] = PurePosixPath(path)
    for line in lines_of(root / "proc/self/mountinfo"):
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
            yield root / _unescape(mounted[4]).lstrip("/"), _below(own[name], mounted[3]), version


def _below(group: PurePosixPath, mounted: str) -> PurePosixPath:
    """The group's path below the mount point; a container often has only its own part mounted."""
    top = PurePosixPath(_unescape(mounted))
    if group.is_relative_to(top):
        return group.relative_to(top)
    # The group's path is that of another namespace ("/../.."): what is mounted is all that can be read.
    return PurePosixPath()


def _unescape(path: str) -> str:
    """Mount points have their blanks as octal escapes."""
    return path.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
