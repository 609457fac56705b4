"""Which of mpkit's files each process has open.

The objects of mpkit are not registered anywhere: which of them are in use is known from the files that the
kernel reports as open. So there is no register to keep up to date, and a killed
process leaves no false entry.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections import defaultdict
from typing import TYPE_CHECKING, NamedTuple

import psutil

from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._shm.memory.names import PREFIX, SEGMENT_NAME, SEMAPHORE_FILE
from mpkit.errors import AccessDenied, ProcessGone
from mpkit.introspect._translate import translated

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_DELETED = " (deleted)"


class OpenSegment(NamedTuple):
    """A file of mpkit that a process has open.

    Attributes:
        name: the path under which it was created.
        path: the path under which it can be opened now.
        removed: whether its name has been removed, so that no further process can open it by name.
    """

    name: str
    path: str
    removed: bool


def creator(path: str) -> ProcessIdentity | None:
    """The process that created a file, as its name tells; None if it is no name of mpkit."""
    name = os.path.basename(path)
    found = re.fullmatch(SEGMENT_NAME, name) or re.fullmatch(SEMAPHORE_FILE, name)
    return ProcessIdentity(int(found["pid"]), int(found["started"])) if found else None


def _kind_of(path: str) -> str:
    """The kind of a file (the argument of `Segment.create`): ``"queue"``, ...; empty if it is not mpkit's."""
    parts = os.path.basename(path).split("-")
    return parts[1] if len(parts) > 1 and f"{parts[0]}-" == PREFIX else ""


if sys.platform == "linux":

    def segments_of(process: psutil.Process, kind: str) -> list[OpenSegment]:
        """The segments of a kind that a process has open, each once.

        Raises:
            ProcessGone, AccessDenied: the process cannot be looked at.
        """
        directory = f"/proc/{process.pid}/fd"
        found: dict[str, OpenSegment] = {}
        with _as_psutil_says(process.pid):
            for number in os.listdir(directory):
                link = f"{directory}/{number}"
                # A descriptor may be closed while the list is read.
                with contextlib.suppress(FileNotFoundError):
                    target = os.readlink(link)
                    name = target.removesuffix(_DELETED)
                    if _kind_of(name) == kind:
                        # The link can be opened even if the name has been removed.
                        found.setdefault(name, OpenSegment(name, link, removed=name != target))
        return sorted(found.values())

    def _mapped_by(process: psutil.Process) -> Iterator[str]:
        with _as_psutil_says(process.pid), open(f"/proc/{process.pid}/maps", "rb") as lines:
            for line in lines:
                if b"/" in line and PREFIX.encode() in line:
                    yield os.fsdecode(line[line.index(b"/") :].rstrip(b"\n")).removesuffix(_DELETED)

    @contextlib.contextmanager
    def _as_psutil_says(pid: int) -> Generator[None]:
        with translated(pid):
            try:
                yield
            except (FileNotFoundError, ProcessLookupError):
                raise psutil.NoSuchProcess(pid) from None
            except PermissionError:
                raise psutil.AccessDenied(pid) from None

else:

    def segments_of(process: psutil.Process, kind: str) -> list[OpenSegment]:
        """The segments of a kind that a process has open, each once.

        Raises:
            ProcessGone, AccessDenied: the process cannot be looked at.
        """
        names = sorted({name for name in _mapped_by(process) if _kind_of(name) == kind})
        return [OpenSegment(name, name, removed=False) for name in names]

    def _mapped_by(process: psutil.Process) -> Iterator[str]:
        # Semaphores cannot be seen from outside here, and have no files that could be left behind.
        with translated(process.pid):
            yield from (file.path for file in process.open_files() if _kind_of(file.path))


def users() -> dict[str, list[psutil.Process]]:
    """Every file of mpkit (on Linux, also of semaphores) that any process has open, with these processes.

    Processes that this user may not examine are left out. They cannot use this user's files either, unless
    they belong to the administrator.
    """
    found: defaultdict[str, list[psutil.Process]] = defaultdict(list)
    for process in psutil.process_iter():
        with contextlib.suppress(ProcessGone, AccessDenied):
            for name in set(_mapped_by(process)):
                found[name].append(process)
    return dict(found)


def programs() -> list[int]:
    """The topmost process of each program that has a file of mpkit open: those without such an ancestor."""
    using = {process.pid: process for processes in users().values() for process in processes}
    tops: list[int] = []
    for pid, process in using.items():
        with contextlib.suppress(psutil.NoSuchProcess):
            if not any(parent.pid in using for parent in _parents(process)):
                tops.append(pid)
    return sorted(tops)


def _parents(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.parents()
    except psutil.AccessDenied:
        # It belongs to another user, so none of its ancestors was found to use mpkit.
        return []


def other_trackers() -> list[int]:
    """The resource trackers of multiprocessing that serve other programs than this one."""
    mine = set(psutil.Process().children(recursive=True))
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "multiprocessing.resource_tracker" in " ".join(process.info["cmdline"] or ())
        and process not in mine
    ]
