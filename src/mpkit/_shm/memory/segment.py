"""A segment of shared memory: a mapped file that other processes open by its name.

The files are in ``/dev/shm`` if it exists and has room, otherwise in the temporary directory (slower to
create, same semantics). Only their user can open them (mode 0600, checked again when opened). Memory is
reserved before it is touched, so a full file system is an error of the call that asks for memory, and never a
SIGBUS later. A file can be extended at its end.
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

T = TypeVar("T")

_NO_ROOM = {errno.ENOSPC, errno.ENOMEM, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EFBIG}
_NOT_FOR_US = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT}
# Errors after which the next directory may still work.
_TRY_ELSEWHERE = _NOT_FOR_US | {errno.ENOSPC, errno.EDQUOT, errno.ENOTDIR}
# posix_fallocate(3) fails with these where the file system does not support it (glibc emulates it then, musl
# does not), and in sandboxes that do not know it or do not allow it.
_CANNOT_ALLOCATE = {errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS, errno.EPERM}
_OPEN_FLAGS = os.O_RDWR | NOT_INHERITED | NO_LINK


# What a closed segment has instead of its mapping: private memory, so late stores affect nothing.
_GONE = mmap.mmap(-1, PAGE)

# Bound early: when the last objects are finalized, a module's globals may be gone.
_is_finalizing = sys.is_finalizing


class Segment:
    """One mapped file.

    Attributes:
        name: the absolute path, which `attach` takes in another process.
        size: bytes mapped by this object (the file may have grown since).
        mm: the mapping; slices of it copy.
        words: the same bytes as 8-byte words. One item assignment is one aligned 8-byte store: no reader can
            see it half done, and no kill can interrupt it half way (`memoryview` packs a native "Q" with a
            single 8-byte copy; `struct.pack_into` would clear its target first).
        fd: the open file, for extending it and for file locks; -1 when closed.
        managed: set by an object that closes this one; then `__del__` does not, because a garbage collection
            may finalize the segment before that object.
    """

    __slots__ = ("__weakref__", "_owner_pid", "fd", "managed", "mm", "name", "size", "words")

    def __init__(self, name: str, fd: int, size: int, *, owned: bool) -> None:
        self.name: str = name
        self.fd: int = fd
        self.size: int = size
        self._owner_pid = os.getpid() if owned else 0
        self.managed: bool = False
        self.mm: mmap.mmap = map_file(fd, size)
        self.words: memoryview[int] = memoryview(self.mm).cast("B").cast("Q")

    @classmethod
    def create(cls, size: int, *, kind: str, reserved: int | None = None) -> Segment:
        """Create and reserve a segment of at least `size` bytes (rounded up to whole pages), all zero.

        Args:
            size: bytes to map.
            kind: a word for the name, lower-case letters only.
            reserved: bytes at the beginning to reserve now; the rest must be reserved (`reserve`) before it
                is touched. None: all.

        Raises:
            SharedMemoryExhausted: neither shared memory nor the temporary directory has room, or this process
                may not open or map more. Nothing is left behind.
        """
        size = round_up(size, PAGE)

        def make(path: str, fd: int) -> Segment:
            os.ftruncate(fd, size)
            reserve(fd, 0, size if reserved is None else min(reserved, size))
            return cls(path, fd, size, owned=True)

        # Deferred, so that no interrupt comes between creating the file and the object that removes it.
        with deferred_interrupts():
            return create_file(kind, size, make)

    @classmethod
    def attach(cls, name: str, size: int | None = None) -> Segment:
        """Open and map a segment that another process (or this one) has created.

        Args:
            name: its absolute path.
            size: how many bytes to map, from the beginning; None: all.

        Raises:
            HandleLost: the name is gone, because its creator has removed it or has exited; or the file is
                shorter than `size`.
            PermissionError: the file belongs to another user or is open to others; it is not trusted.
            SharedMemoryExhausted: this process may not open or map more.
            ValueError: `name` cannot be the name of a segment.
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
                # Its creator is between creating the file and giving it its size, or died there.
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
        """Close the file, drop this process's mapping and, in the creator, let go of the name.

        The memory is unmapped when the last view of it goes. A second call does nothing.

        Args:
            in_use: tells whether other processes still need the name; None when nobody does (see
                `names.let_go`).
        """
        with deferred_interrupts():
            # Forgotten before it is closed: closing the same number twice might close somebody else's file.
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)
        # Dropped rather than closed: another thread in the middle of an operation, or a view that is still in
        # use, keeps the mapping alive.
        self.mm = _GONE
        self.words = memoryview(_GONE).cast("B").cast("Q")
        if self._owner_pid == os.getpid():
            names.let_go(self.name, self.name, in_use)
            # Last, so that after an interrupt a second call completes the work.
            self._owner_pid = 0

    def unlink(self) -> None:
        """Remove the name now, in the creator; elsewhere do nothing. Processes that have it open keep it."""
        if self._owner_pid == os.getpid():
            names.remove(self.name)

    def __del__(self) -> None:
        # When the interpreter is shutting down, the exit hook of `names` has removed everything already, and
        # modules are half gone. (Called last: when the last view of a closed segment goes, even this function
        # may be gone.)
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
    """Create a private file in shared memory or, if that has no room, in the temporary directory.

    Args:
        kind: a word for the name, lower-case letters only.
        size: the length that `make` gives the file; used in the error message.
        make: called with path and descriptor to give the file its content; if it returns, the descriptor is
            its own to close. Called again, with another file, if the first directory has no room.

    Returns:
        What `make` returns.

    Raises:
        SharedMemoryExhausted: neither directory has room, or this process may not open or map more. Nothing
            is left behind, as after any exception of `make`.
        OSError: on Windows, where the semaphores that go with the file cannot be created.
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
            # Before the file is created, so that the resource tracker knows the name whenever a kill comes.
            names.own(path, "shared_memory")
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
        # Break the reference cycle: the traceback refers to this frame, and so to all callers and what they
        # hold, which would stay until the next garbage collection.
        failure = None


def _mark_fall_back(fd: int) -> None:
    # OSError: the file system has no locks. Then nobody can lock the file to remove it, either (see `sweep`).
    with contextlib.suppress(OSError):
        use_marks.mark(fd)


def _sweep_once(directory: str) -> None:
    from mpkit._shm.memory import sweep  # noqa: PLC0415  most processes never create a fall-back file

    sweep.sweep_once(directory)


def reserve(fd: int, offset: int, size: int) -> None:
    """Allocate memory for `size` bytes of the file from `offset` on, so that no later store there can fail.

    The file is extended if necessary.

    Raises:
        OSError: ENOSPC and the like; the file may have become longer, which does no harm.
    """
    if hasattr(os, "posix_fallocate"):
        # tmpfs allocates pages here; without it, a store into a full tmpfs is a SIGBUS.
        try:
            os.posix_fallocate(fd, offset, size)
        except OSError as error:
            if error.errno not in _CANNOT_ALLOCATE:
                raise
        else:
            return
    # No posix_fallocate (macOS, Windows, some sandboxes and file systems): writing zeros allocates, too.
    # Callers reserve only memory that is not in use yet, so nothing is overwritten.
    block = bytes(min(size, 1 << 20))
    end = offset + size
    while offset < end:
        offset = write_all(fd, block[: end - offset], offset)


def check_private(name: str, status: os.stat_result) -> None:
    """Refuse a file that is not this user's alone: its content is going to be unpickled.

    Raises:
        PermissionError: it is no regular file, belongs to another user, or others have any access to it.
    """
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
    """Raise the system's error from opening or mapping a file, as `SharedMemoryExhausted` if a resource ran
    out.
    """
    if error.errno in _NO_ROOM:
        raise exhausted(error, 0) from error
    raise error


def exhausted(error: OSError, size: int, only: str | None = None) -> SharedMemoryExhausted:
    """The public error for a file, map or semaphore that the system refused.

    Args:
        error: the system's error.
        size: how many bytes were to be reserved; 0: something that exists could not be opened.
        only: the one directory that was possible (for a file that was to grow, and for semaphores).
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
        remedy = "this process may not make files that long: raise RLIMIT_FSIZE (ulimit -f)"
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
    """The free bytes for this user in the directory that has most; None if the system does not tell."""
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
    # tmpfs first: its pages are never written to a disk file.
    has_shared_memory = os.path.isdir(SHM_DIRECTORY)
    if has_shared_memory:
        yield SHM_DIRECTORY
    # Only reached if that has no room (this is a generator): the real path costs a look at each parent.
    try:
        temporary = names.temporary_directory()
    except FileNotFoundError:
        # A read-only container may have none.
        if has_shared_memory:
            return
        raise
    yield temporary
