"""Bytes in shared memory that are written once, when they are made, and only read after that.

They are written into the file, not into a mapping of it: so the system neither clears pages that are going
to be overwritten nor takes a page fault for each of them (measured: 10 MB in 1.9 ms instead of 4.8). A full
file system is an error of the write, never a SIGBUS.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence

from mpkit._platform.files.positioned import write_all
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._shm.memory import names
from mpkit._shm.memory.segment import create_file

__all__ = ["Blob"]

# Bound early: a module's globals may be gone when the last objects are.
_is_finalizing = sys.is_finalizing


class Blob:
    """In its creator: the file, which goes with this object unless it is handed over.

    Attributes:
        name: the absolute path.
        size: bytes in it.
        needs: what is named in it and has to be there as long.
    """

    __slots__ = ("__weakref__", "_owner_pid", "name", "needs", "size")

    def __init__(self, name: str, size: int) -> None:
        self.name: str = name
        self.size: int = size
        self.needs: Sequence[Blob] = ()
        self._owner_pid = os.getpid()

    @classmethod
    def create(cls, pieces: Iterable[tuple[int, bytes | memoryview]], size: int, *, kind: str) -> Blob:
        """Write the pieces, each at its place, into a new file of the user's own.

        Args:
            pieces: where each begins, and its bytes (contiguous); gaps between them are zero.
            size: where the last one ends.
            kind: a word for the name, without "-".

        Raises:
            SharedMemoryExhausted: neither shared memory nor the temporary directory has the room, or this
                process may not open more files. Nothing is left behind.
        """
        pieces = list(pieces)

        def write(path: str, fd: int) -> tuple[str, int]:
            for at, piece in pieces:
                write_all(fd, piece, at)
            return path, fd

        # So that no interrupt comes between the file and its object: a tenth of a second for each gigabyte.
        with deferred_interrupts():
            path, fd = create_file(kind, size, write)
            os.close(fd)
            made = cls(path, size)
            names.belongs_to(made, path)
            return made

    def hand_over(self) -> str:
        """The name, which belongs to whoever receives it from now on."""
        self._owner_pid = 0
        names.hand_over(self.name)
        return self.name

    def close(self) -> None:
        """Remove the name, unless it is another's by now. Those who have it mapped keep it."""
        if self._owner_pid == os.getpid():
            names.remove(self.name)
            # Last: after an interrupt a second call does the rest.
            self._owner_pid = 0

    def __del__(self) -> None:
        # At the end of the interpreter the exit hook of `names` removes everything.
        if not _is_finalizing() and hasattr(self, "_owner_pid"):
            self.close()

    def __repr__(self) -> str:
        return f"<Blob {os.path.basename(self.name)} {self.size} bytes>"
