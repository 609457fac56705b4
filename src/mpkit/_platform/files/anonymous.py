"""Files without a name: what a child leaves for its parent, and what nobody has to remove.

A `WorkerProcess` leaves its report and its stacks in two of them (`mpkit.process`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterable
from typing import Any

from mpkit._platform.files.descriptors import file_behind, is_still
from mpkit._platform.files.file_maps import map_privately
from mpkit._platform.files.positioned import read_at, write_all
from mpkit._platform.hints import override
from mpkit._platform.stdlib.passing import PassedDescriptor, pass_descriptor

__all__ = ["AnonymousFile"]

#: How memfd_create(2) fails in sandboxes that do not know it or do not let it through, and on systems where a
#: program has to say that it will not execute the file (vm.memfd_noexec = 2; older ones do not know how).
_FORBIDDEN = frozenset({errno.ENOSYS, errno.EPERM, errno.EACCES})


class AnonymousFile:
    """A file that goes with the last process that has it open, however that process ends.

    In memory on Linux (memfd_create(2), not limited by the size of ``/dev/shm``); elsewhere, and where that
    is forbidden, in the directory for temporary files, with its name removed at once. On Windows it has a
    name until its creator closes it.

    Can be pickled while a child is being started; the child then has the same file. What one of them reads
    and writes is independent of where the other one, or another thread, is just reading or writing: they have
    one position in common, which nobody uses.
    """

    def __init__(self, descriptor: int, path: str | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._file = file_behind(descriptor)
        self._closer = weakref.finalize(self, _close, descriptor, self._file, path, os.getpid())
        # At the end of the interpreter there is nothing to do but on Windows, where a name has to be removed.
        self._closer.atexit = path is not None

    @classmethod
    def create(cls, label: str) -> AnonymousFile:
        """Make an empty one. `label` is what the system may list it under."""
        if sys.platform == "linux" and hasattr(os, "memfd_create"):
            try:
                return cls(os.memfd_create(f"mpkit-{label}", os.MFD_CLOEXEC))
            except OSError as error:
                if error.errno not in _FORBIDDEN:
                    raise
        descriptor, path = tempfile.mkstemp(prefix=f"mpkit-{label}-")
        if sys.platform == "win32":
            return cls(descriptor, path)
        os.unlink(path)
        return cls(descriptor)

    def fileno(self) -> int:
        """The descriptor.

        Raises:
            ValueError: If it is closed.
            OSError: If it has been closed by somebody else (``os.closerange`` in a daemon), though the number
                may be another file's by now.
        """
        if not self._closer.alive:
            raise ValueError("this file is closed")
        if not is_still(self._descriptor, self._file):
            raise OSError(
                errno.EBADF,
                f"descriptor {self._descriptor}, which mpkit needs for the result of the process, has been "
                "closed; close only descriptors that are your own",
            )
        return self._descriptor

    def write(self, parts: Iterable[bytes | memoryview], *, at: int) -> None:
        """Write all of `parts`, one after the other, beginning at offset `at`.

        Raises:
            OSError: If there is no room for it.
        """
        descriptor = self.fileno()
        for part in parts:
            at = write_all(descriptor, part, at)

    def size(self) -> int:
        """How many bytes it has."""
        return os.fstat(self.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        """What is in it, or the first `size` bytes of that."""
        descriptor = self.fileno()
        parts: list[bytes] = []
        at, left = 0, self.size() if size < 0 else size
        while left and (part := read_at(descriptor, left, at)):
            parts.append(part)
            at += len(part)
            left -= len(part)
        return b"".join(parts)

    def map_privately(self) -> memoryview:
        """Its contents as memory of our own: writing there changes neither the file nor what others see.

        Not to be called when it is empty. The memory is given back when the last view of it goes, after a
        `close` too.
        """
        mapped = map_privately(self.fileno(), self.size())
        # Closed by another thread meanwhile, its number may be another file's, which has been mapped.
        self.fileno()
        return memoryview(mapped)

    def close(self) -> None:
        """Let go of it. Twice does no harm."""
        self._closer()

    @override
    def __reduce__(self) -> tuple[Callable[..., AnonymousFile], tuple[Any, ...]]:
        if self._path is not None:
            return _open, (self._path,)
        return _arrive, (pass_descriptor(self.fileno()),)


def _arrive(passed: PassedDescriptor) -> AnonymousFile:
    descriptor = passed.detach()
    os.set_inheritable(descriptor, False)
    return AnonymousFile(descriptor)


def _open(path: str) -> AnonymousFile:
    return AnonymousFile(os.open(path, os.O_RDWR | getattr(os, "O_BINARY", 0)))


def _close(descriptor: int, file: tuple[int, int], path: str | None, creator: int) -> None:
    if is_still(descriptor, file):
        os.close(descriptor)
    if path is not None and os.getpid() == creator:
        # A result may still be mapped, and such a file stays on Windows.
        with contextlib.suppress(PermissionError):
            os.unlink(path)
