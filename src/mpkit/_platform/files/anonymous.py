"""Unnamed files: a child can leave something for its parent there, and nothing has to be removed afterwards.

A `WorkerProcess` has two of them, for its report and for the output of its fault handler (`mpkit.process`).
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
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.passing import PassedDescriptor, pass_descriptor

#: The errors of memfd_create(2) in sandboxes that do not support or allow it, and on systems where a program
#: has to declare that the file will not be executed (vm.memfd_noexec = 2), for which older Pythons have no
#: flag.
_FORBIDDEN = frozenset({errno.ENOSYS, errno.EPERM, errno.EACCES})


class AnonymousFile:
    """A file that vanishes with the last process that has it open, however that process ends.

    On Linux it is in memory (memfd_create(2), not limited by the size of ``/dev/shm``). Elsewhere, and where
    that is forbidden, it is in the directory for temporary files, and its name is removed at once. On Windows
    it has a name until its creator closes it.

    It can be pickled while a child is being started, which then has the same file. All reading and writing is
    at given offsets, because parent and child (and their threads) share one file position.
    """

    def __init__(self, descriptor: int, path: str | None = None) -> None:
        self._descriptor = descriptor
        self._path = path
        self._file = file_behind(descriptor)
        self._closer = weakref.finalize(self, _close, descriptor, self._file, path, os.getpid())
        # When the interpreter exits, there is only something to do on Windows: removing the name.
        self._closer.atexit = path is not None

    @classmethod
    def create(cls, label: str) -> AnonymousFile:
        """Create an empty file. `label` is part of the name under which the system may list it.

        Raises:
            OSError: If there is no descriptor or memory left.
        """
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
            ValueError: If this object is closed.
            OSError: If other code has closed the descriptor (``os.closerange`` in a daemon), even if the
                number refers to another file by now.
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
        """Its length in bytes."""
        return os.fstat(self.fileno()).st_size

    def read(self, size: int = -1) -> bytes:
        """Its content, or the first `size` bytes."""
        descriptor = self.fileno()
        parts: list[bytes] = []
        at, left = 0, self.size() if size < 0 else size
        while left and (part := read_at(descriptor, left, at)):
            parts.append(part)
            at += len(part)
            left -= len(part)
        return b"".join(parts)

    def map_privately(self) -> memoryview:
        """Its content as private memory: writing there changes neither the file nor what others see.

        The file must not be empty. The memory is freed when the last view of it goes, even after `close`.

        Raises:
            OSError: If the system has no memory left, or other code has closed the descriptor.
            ValueError: If this object is closed.
        """
        mapped = map_privately(self.fileno(), self.size())
        # Checked again: if another thread has closed it meanwhile, another file with the same descriptor may
        # have been mapped.
        self.fileno()
        return memoryview(mapped)

    def close(self) -> None:
        """Close the file. A second call does nothing."""
        # A finalizer is dead as soon as it is called: after an interrupt in it, nothing would close the file.
        with deferred_interrupts():
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
        # On Windows a file that is still mapped (as a result may be) cannot be removed.
        with contextlib.suppress(PermissionError):
            os.unlink(path)
