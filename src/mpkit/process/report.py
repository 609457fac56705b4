"""What a child tells its parent: that it has arrived, its result or exception, which descendants it leaves.

This goes through an unnamed file that both have open, not through a pipe. So the child never waits for its
parent to read, however large the result is, and `join` cannot deadlock; the result survives the child's exit;
and there is no name to remove.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import Final

from mpkit._platform.files.anonymous import AnonymousFile
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import notes
from mpkit._wire import codec, failure, frame
from mpkit.errors import SerializationError

__all__ = ["Report", "Stage"]

# The layout of the file: the stage, the words below, then at `_BODY_AT` the result or exception (see
# `mpkit._wire.frame`).
_STAGE: Final = struct.Struct("<Q")

# Written by the child: its pid and start time.
_WHO: Final = struct.Struct("<QQ")
_WHO_AT: Final = _STAGE.size
# Written by the parent when the child is no longer wanted: 1 because the start has failed on the parent's
# side, or the child is stopped; 2 if the parent interrupts it next, in case it has arrived.
_UNWANTED: Final = struct.Struct("<Q")
_UNWANTED_AT: Final = _WHO_AT + _WHO.size
# Written by the child: how many of its descendants it has left behind, then the pid and start time of each.
_LEFT: Final = struct.Struct("<Q")
_LEFT_AT: Final = _UNWANTED_AT + _UNWANTED.size
# All this takes one page. There is room for some 120 descendants; of more, the rest are not reported.
_BODY_AT: Final = 4096
# Written by the child: its notes (see `mpkit._platform.stdlib.notes`).
_NOTES_AT: Final = _BODY_AT - notes.SIZE
_MOST_LEFT: Final = (_NOTES_AT - _LEFT_AT - _LEFT.size) // _WHO.size


class Stage(IntEnum):
    """How far the child has come."""

    NOTHING = 0
    """It has not arrived."""
    ARRIVED = 1
    """It is running, and its main module has been imported."""
    RETURNED = 2
    """Its target has returned, and the result has been written."""
    RAISED = 3
    """Its target (or sending to or from the child) has raised, and the exception has been written."""


class Report:
    """One child's report. The child writes it, and the parent reads it once the child has ended.

    Can be pickled while the child is being started.
    """

    def __init__(self, file: AnonymousFile) -> None:
        self._file = file

    @classmethod
    def create(cls) -> Report:
        """Create an empty report.

        Raises:
            OSError: If there is no file descriptor or memory left.
        """
        return cls(AnonymousFile.create("report"))

    # -- in the child ----------------------------------------------------------------------------------------

    def arrived(self) -> bool:
        """Record that the child has arrived, and return whether it is wanted.

        Parent and child each write first, and then read what the other writes. So if a start fails while the
        child arrives, the child sees that it is not wanted, or the parent sees which process it is
        (`unwanted`), or both.
        """
        me = identity.current()
        self._file.write([_STAGE.pack(Stage.ARRIVED), _WHO.pack(me.pid, me.started)], at=0)
        return _UNWANTED.unpack_from(self._words(), _UNWANTED_AT) == (0,)

    def is_being_stopped(self) -> bool:
        """Whether the parent is interrupting this child to stop it (as opposed to Ctrl-C)."""
        return _UNWANTED.unpack_from(self._words(), _UNWANTED_AT) == (2,)

    def note(self, at: int, record: bytes) -> None:
        """Write a note; the argument for `notes.keep`."""
        # OSError, ValueError: the program has closed all descriptors (a daemon does); then nothing is noted.
        with contextlib.suppress(OSError, ValueError):
            self._file.write([record], at=_NOTES_AT + at)

    def returned(self, value: object) -> None:
        """Report that the target has returned `value`, or the error if that cannot be pickled."""
        try:
            head, buffers = codec.encode(value)
        except BaseException as error:  # noqa: BLE001  whatever it is, the parent's `result()` raises it
            self.raised(error)
            return
        views = [buffer.raw() for buffer in buffers]
        try:
            self._write(Stage.RETURNED, head, views)
        except OSError as error:
            self.raised(error)

    def raised(self, error: BaseException) -> None:
        """Report that the target has raised `error`."""
        try:
            packed = failure.pack_exception(error)
        except KeyboardInterrupt as interrupt:  # raised by a pickling hook: Ctrl-C is deferred here
            packed = failure.pack_exception(interrupt)
        self._write(Stage.RAISED, packed, [])

    def leaves(self, processes: Iterable[ProcessIdentity]) -> None:
        """Report the descendants that the child, which is ending, leaves behind."""
        told = list(processes)[:_MOST_LEFT]
        self._file.write(
            [_LEFT.pack(len(told)), *(_WHO.pack(process.pid, process.started) for process in told)],
            at=_LEFT_AT,
        )

    def _write(self, stage: Stage, head: bytes, views: list[memoryview]) -> None:
        pieces, _ = frame.lay_out(head, views, _BODY_AT)
        for at, piece in pieces:
            self._file.write([piece], at=at)
        # The stage is written last: if the child is killed before that, it has reported nothing.
        self._file.write([_STAGE.pack(stage)], at=0)

    # -- in the parent ---------------------------------------------------------------------------------------

    def unwanted(self, *, interrupts: bool = False) -> ProcessIdentity | None:
        """Record that the child is not wanted: if it arrives after this, it ends at once.

        Args:
            interrupts: Whether the caller interrupts it next.

        Returns:
            The child, if it has arrived already.
        """
        self._file.write([_UNWANTED.pack(1 + interrupts)], at=_UNWANTED_AT)
        pid, started = _WHO.unpack_from(self._words(), _WHO_AT)
        return ProcessIdentity(pid, started) if pid else None

    def read(self) -> tuple[Stage, object]:
        """How far the child came, and what its target returned or raised (None if neither).

        Raises:
            SerializationError: If the result cannot be unpickled here, or is damaged.
            OSError: If the system has no memory left to map it.
            ValueError: If the file is closed.
        """
        contents = self._file.map_privately() if self._file.size() else memoryview(b"")
        if len(contents) < _STAGE.size:
            return Stage.NOTHING, None
        (number,) = _STAGE.unpack_from(contents)
        if number > Stage.RAISED:
            raise SerializationError("the result that the process left behind is damaged")
        stage = Stage(number)
        if stage < Stage.RETURNED:
            return stage, None
        head, *views = frame.take_apart(contents, _BODY_AT)
        if stage is Stage.RETURNED:
            return stage, codec.decode(head, views)
        return stage, failure.unpack_exception(bytes(head))

    def left(self) -> list[ProcessIdentity]:
        """The descendants that the child has reported leaving behind. They may have ended since."""
        words = self._words()
        (count,) = _LEFT.unpack_from(words, _LEFT_AT)
        records = _WHO.iter_unpack(words[_LEFT_AT + _LEFT.size :][: min(count, _MOST_LEFT) * _WHO.size])
        return [ProcessIdentity(pid, started) for pid, started in records]

    def stage(self) -> Stage:
        """How far the child came."""
        return Stage(*_STAGE.unpack_from(self._words()))

    def notes(self) -> bytes:
        """The child's notes (see `mpkit._platform.stdlib.notes`)."""
        return self._words()[_NOTES_AT:]

    def is_open(self) -> bool:
        """Whether it can be passed on to a child; not if the program has closed all descriptors."""
        with contextlib.suppress(OSError, ValueError):
            return self._file.fileno() >= 0
        return False

    def close(self) -> None:
        """Close the file; what was read from it stays valid."""
        self._file.close()

    # -- in both ---------------------------------------------------------------------------------------------

    def _words(self) -> bytes:
        return self._file.read(_BODY_AT).ljust(_BODY_AT, b"\0")
