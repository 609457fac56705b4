"""A piece of shared memory: a mapped file that other processes open by its name.

Files lie in ``/dev/shm`` where there is one with room, else in the temporary directory (slower to create,
same semantics). They belong to the user alone (0600, checked again when opened), are reserved in full before
the first byte is touched, so a full file system is an error at the call that asks for memory and never a
SIGBUS later, and can be extended at the end.
"""

from __future__ import annotations

import contextlib
import errno
import mmap
import os
import stat
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn, TypeVar

from mpkit._platform.files import use_marks
from mpkit._platform.files.descriptors import NO_LINK, NOT_INHERITED, is_ours
from mpkit._platform.files.file_maps import map_file
from mpkit._platform.files.positioned import write_all
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._shm.memory import names
from mpkit._shm.memory.names import PREFIX, SHM_DIRECTORY
from mpkit.errors import HandleLost, SharedMemoryExhausted

PAGE = mmap.ALLOCATIONGRANULARITY

__all__ = [
    "PAGE",
    "Segment",
    "check_private",
    "create_file",
    "exhausted",
    "raise_refusal",
    "reserve",
    "round_up",
]

T = TypeVar("T")

_NO_ROOM = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_NOT_FOR_US = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
_TRY_ELSEWHERE = _NOT_FOR_US | {errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
# How posix_fallocate(3) fails where the file system cannot do it (musl does not make up for that, as glibc
# does), and in sandboxes that do not know it or do not let it through.
_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM}
_OPEN_FLAGS = os.O_RDWR | NOT_INHERITED | NO_LINK


# What a closed segment maps: nothing of anybody.
_GONE = mmap.mmap(-1, PAGE)

# Bound early: a module's globals may be gone when the last objects are.
_is_finalizing = sys.is_finalizing


class Segment:
    """One mapped file.

    Attributes:
        name: the absolute path, which `attach` takes in another process.
        size: bytes mapped by this object (the file may have grown since).
        mm: the mapping; slices of it copy.
        words: the same bytes as 8-byte words. One item assignment is one aligned 8-byte store, which no
            reader can see half done and no kill can interrupt half way (`memoryview` packs a native "Q" with
            a single 8-byte copy; `struct.pack_into` would clear its target first).
        fd: the open file, for extending it and for file locks.
    """

    __slots__ = ("__weakref__", "_owner_pid", "fd", "managed", "mm", "name", "size", "words")

    def __init__(self, name: str, fd: int, size: int, *, owned: bool) -> None:
        self.name: str = name
        self.fd: int = fd
        self.size: int = size
        self._owner_pid = os.getpid() if owned else 0
        # Set by an owner that closes it: a garbage collection may come to the segment before it comes to the
        # owner.
        self.managed: bool = False
        self.mm: mmap.mmap = map_file(fd, size)
        self.words: memoryview[int] = memoryview(self.mm).cast("B").cast("Q")

    @classmethod
    def create(cls, size: int, *, kind: str, reserved: int | None = None) -> Segment:
        """Create and reserve a segment of at least `size` bytes (rounded up to whole pages), all zero.

        Args:
            size: bytes to map.
            kind: a word for the name, without "-".
            reserved: bytes at the beginning to reserve now; the rest must be reserved (`reserve`) before it
                is touched. None = all.

        Raises:
            SharedMemoryExhausted: neither shared memory nor the temporary directory has the room, or this
                process may not open or map more. Nothing is left behind.
        """
        size = round_up(size, PAGE)

        def make(path: str, fd: int) -> Segment:
            os.ftruncate(fd, size)
            reserve(fd, 0, size if reserved is None else min(reserved, size))
            return cls(path, fd, size, owned=True)

        # So that no interrupt comes between the file and its object.
        with deferred_interrupts():
            return create_file(kind, size, make)

    @classmethod
    def attach(cls, name: str, size: int | None = None) -> Segment:
        """Open a segment that another process (or this one) created, and map it, or only its first `size`
        bytes.

        Raises:
            HandleLost: the name is gone: its creator has removed it or has exited.
            PermissionError: the file belongs to another user or is open to others; it is not trusted.
            SharedMemoryExhausted: this process may not open or map more.
        """
        if not os.path.basename(name).startswith(PREFIX):
            raise ValueError(f"{name!r} is not the name of an mpkit segment")
        try:
            fd = os.open(name, _OPEN_FLAGS)
        except FileNotFoundError as error:
            raise HandleLost(
                f"{name!r} is gone: the process that created it has closed it or has exited; keep the "
                "creator alive until every handle that was sent has been used"
            ) from error
        except OSError as error:
            raise_refusal(error)
        try:
            status = os.fstat(fd)
            check_private(name, status)
            if names.is_fall_back(name):
                _mark_fall_back(fd)
            if size is not None and status.st_size < size:
                # Its creator died, or is still at work, between the first two steps of making it.
                raise HandleLost(f"{name!r} has never been finished by the process that began to create it")
            return cls(name, fd, status.st_size if size is None else size, owned=False)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, OSError):
                raise_refusal(error)
            raise

    @property
    def closed(self) -> bool:
        return self.fd < 0

    def close(self, in_use: names.InUse | None = None) -> None:
        """Give back this process's mapping (now, or when the last view of it goes) and, in the creator, let
        go of the name.

        Args:
            in_use: tells whether other processes still need the name; None when nobody does (see
                `names.let_go`).
        """
        with deferred_interrupts():
            # First the number is forgotten: closed twice it might be another's the second time.
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)
        # Dropped rather than closed: a thread that is still at work, or a view that somebody holds, keeps the
        # mapping until it goes.
        self.mm = _GONE
        self.words = memoryview(_GONE).cast("B").cast("Q")
        if self._owner_pid == os.getpid():
            names.let_go(self.name, self.name, in_use)
            # Last: after an interrupt a second call does the rest.
            self._owner_pid = 0

    def unlink(self) -> None:
        """Remove the name now (creator only; elsewhere it does nothing). Those who have the segment open keep
        it.
        """
        if self._owner_pid == os.getpid():
            names.remove(self.name)

    def __del__(self) -> None:
        # At the end of the interpreter the exit hook of `names` has removed everything already, and modules
        # are half gone. (Asked last: even that function may be, when the last view of a closed one goes.)
        if (
            hasattr(self, "words")
            and (self.fd >= 0 or self._owner_pid)
            and not self.managed
            and not _is_finalizing()
        ):
            self.close()

    def __repr__(self) -> str:
        return f"<Segment {os.path.basename(self.name)} {'closed' if self.closed else f'{self.size} bytes'}>"


def create_file(kind: str, size: int, make: Callable[[str, int], T]) -> T:
    """A new file of the user's own, in shared memory or, if that has no room, in the temporary directory.

    Args:
        kind: a word for the name, without "-".
        size: bytes that it is going to have, for the error.
        make: called with path and descriptor (which is its own if it succeeds) to give the file its content;
            with another one if the first directory has no room.

    Returns:
        What `make` returns.

    Raises:
        SharedMemoryExhausted: neither directory has the room, or this process may not open or map more.
            Nothing is left behind, as after any exception of `make`.
        OSError: this is Windows, where the semaphores that go with the file could not be made.
    """
    if sys.platform == "win32":
        raise OSError(
            errno.ENOTSUP,
            "mpkit's queues, locks and pools need named semaphores, which Python does not offer on "
            "Windows; use them under Linux, macOS or WSL",
        )
    base = names.new_name(kind)
    failure: OSError | None = None
    try:
        for directory in _directories():
            path = os.path.join(directory, base)
            # First: whenever a kill comes, the resource tracker knows the name.
            names.own(path, "segment")
            fd = -1
            try:
                fd = os.open(path, _OPEN_FLAGS | os.O_CREAT | os.O_EXCL, 0o600)
                if names.is_fall_back(path):
                    _mark_fall_back(fd)
                    _sweep_once(directory)
                return make(path, fd)
            except BaseException as error:
                if fd >= 0:
                    os.close(fd)
                names.remove(path)
                if not isinstance(error, OSError):
                    raise
                failure = failure or error
                if error.errno not in _TRY_ELSEWHERE:
                    raise exhausted(error, size) from error
        assert failure is not None
        raise exhausted(failure, size) from failure
    finally:
        # Its traceback has this frame, and by that all callers: they would keep each other until the next
        # garbage collection, and what the callers have in hand.
        failure = None


def _mark_fall_back(fd: int) -> None:
    # A file system without locks: nobody can lock the file to remove it, either (see `sweep`).
    with contextlib.suppress(OSError):
        use_marks.mark(fd)


def _sweep_once(directory: str) -> None:
    from mpkit._shm.memory import sweep  # noqa: PLC0415  most processes never have one

    sweep.sweep_once(directory)


def reserve(fd: int, offset: int, size: int) -> None:
    """Make the file reach to `offset + size` and give it its memory now, so that no later store can fail.

    Raises:
        OSError: ENOSPC and its like; the file may have become longer, which does no harm.
    """
    if hasattr(os, "posix_fallocate"):
        # tmpfs reserves pages here; without it a store into a full tmpfs is a SIGBUS.
        try:
            os.posix_fallocate(fd, offset, size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
        else:
            return
    # As on macOS and Windows: writing zeros reserves as well. What is reserved is never in use yet.
    block = bytes(min(size, 1 << 20))
    end = offset + size
    while offset < end:
        offset = write_all(fd, block[: end - offset], offset)


def check_private(name: str, status: os.stat_result) -> None:
    """Refuse a file that another user owns or can write to: what lies in it is going to be unpickled."""
    if not stat.S_ISREG(status.st_mode):
        raise PermissionError(errno.EPERM, "not a regular file", name)
    if not is_ours(status) or status.st_mode & 0o077:
        raise PermissionError(
            errno.EPERM,
            f"belongs to user {status.st_uid} with mode {stat.S_IMODE(status.st_mode):o}; mpkit opens its "
            "user's files only",
            name,
        )


def raise_refusal(error: OSError) -> NoReturn:
    """Raise what the system has said when a file was opened or mapped: the public error, if it is about
    having none left.
    """
    if error.errno in _NO_ROOM:
        raise exhausted(error, 0) from error
    raise error


def exhausted(error: OSError, size: int, only: str | None = None) -> SharedMemoryExhausted:
    """The public error for a file, map or semaphore that the system refused.

    Args:
        error: What the system said.
        size: How many bytes were wanted; 0: something that is there could not be opened.
        only: The one directory where it can be: that of a file that was to grow, or of semaphores.
    """
    available: int | None = None
    places = list(_directories()) if only is None else [only]
    if error.errno in (errno.EMFILE, errno.ENFILE):
        remedy = "too many open files: raise RLIMIT_NOFILE (ulimit -n) or close what is not needed"
    elif error.errno == errno.ENOMEM:
        remedy = "this process may not map more memory: raise RLIMIT_AS (ulimit -v) or free some"
    elif error.errno in _NOT_FOR_US:
        remedy = (
            f"this user can create nothing in {SHM_DIRECTORY}, where all semaphores have to be: mount a "
            "tmpfs there that everybody may write to (mode 1777)"
        )
    elif error.errno == errno.EFBIG:
        remedy = "no file of this process may be so long: raise RLIMIT_FSIZE (ulimit -f)"
    else:
        remedy = (
            f"no room in {' nor in '.join(places)}: free some, or give the container more "
            "(docker run --shm-size)"
        )
        available = _available_bytes(places)
    wanted = f"cannot reserve {size} bytes of shared memory" if size else "cannot open shared memory"
    return SharedMemoryExhausted(
        f"{wanted} ({error.strerror or error}); {remedy}",
        requested_bytes=size or None,
        available_bytes=available,
    )


def _available_bytes(places: list[str]) -> int | None:
    """What the roomiest of some directories has left for this user, if the system tells."""
    left: list[int] = []
    for directory in places:
        if hasattr(os, "statvfs"):
            with contextlib.suppress(OSError):
                status = os.statvfs(directory)
                left.append(status.f_bavail * status.f_frsize)
    return max(left, default=None)


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def _directories() -> Iterator[str]:
    # tmpfs first: its pages never travel to a disk.
    has_shared_memory = os.path.isdir(SHM_DIRECTORY)
    if has_shared_memory:
        yield SHM_DIRECTORY
    # Only where that has no room: what its real name is costs a look at each directory above it.
    try:
        temporary = names.temporary_directory()
    except FileNotFoundError:
        # There may be none in a container that is read-only.
        if has_shared_memory:
            return
        raise
    yield temporary
