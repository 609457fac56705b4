"""What a child leaves for its parent: that it has arrived, its result or exception, and who survives it.

It goes into a file without a name that both have open, not into a pipe: the child never waits for its parent
to read, however large the result, so `join` cannot deadlock; the result survives the child's exit; and
nobody has to remove anything.
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

# The stage; then the words below; then what it left (see `mpkit._wire.frame`).
_STAGE: Final = struct.Struct("<Q")

# Written by the child: its pid and start time.
_WHO: Final = struct.Struct("<QQ")
_WHO_AT: Final = _STAGE.size
# Written by the parent: 1 when the start has failed on its side, or it has been stopped before it arrived; 2
# when the parent goes on to interrupt it, should it have arrived.
_UNWANTED: Final = struct.Struct("<Q")
_UNWANTED_AT: Final = _WHO_AT + _WHO.size
# Written by the child: how many of its descendants it has left behind, then the pid and start time of each.
_LEFT: Final = struct.Struct("<Q")
_LEFT_AT: Final = _UNWANTED_AT + _UNWANTED.size
# A page for all this. It has room for some 120 descendants, which nobody has; of more, only so many are told.
_BODY_AT: Final = 4096
# Written by the child: what it notes for who outlives it.
_NOTES_AT: Final = _BODY_AT - notes.SIZE
_MOST_LEFT: Final = (_NOTES_AT - _LEFT_AT - _LEFT.size) // _WHO.size


class Stage(IntEnum):
    """How far the child came."""

    NOTHING = 0
    ARRIVED = 1
    """It is up, and its main module has been imported."""
    RETURNED = 2
    RAISED = 3


class Report:
    """One child's report. The child writes, the parent reads once the child has ended.

    Can be pickled while the child is being started.
    """

    def __init__(self, file: AnonymousFile) -> None:
        self._file = file

    @classmethod
    def create(cls) -> Report:
        """An empty one.

        Raises:
            OSError: If there is no file descriptor left, or no memory.
        """
        return cls(AnonymousFile.create("report"))

    # --- in the child -------------------------------------------------------------------------------------

    def arrived(self) -> bool:
        """The child is up; whether it is wanted.

        Parent and child each write, then read what the other one writes. So however a start that fails
        meets an arrival, either the child sees that nobody wants it, or the parent sees which process it is
        (`unwanted`); or both.
        """
        me = identity.current()
        self._file.write([_STAGE.pack(Stage.ARRIVED), _WHO.pack(me.pid, me.started)], at=0)
        return _UNWANTED.unpack_from(self._words(), _UNWANTED_AT) == (0,)

    def is_being_stopped(self) -> bool:
        """Whether an interrupt that has come is the parent's."""
        return _UNWANTED.unpack_from(self._words(), _UNWANTED_AT) == (2,)

    def note(self, at: int, record: bytes) -> None:
        """For `notes.keep`."""
        # Whoever has closed all descriptors (a daemon) goes without.
        with contextlib.suppress(OSError, ValueError):
            self._file.write([record], at=_NOTES_AT + at)

    def returned(self, value: object) -> None:
        """The target has returned `value`. If it cannot be pickled, the report is that error."""
        try:
            head, buffers = codec.encode(value)
        except BaseException as error:  # noqa: BLE001  whatever it is, its place is in the parent's `result()`
            self.raised(error)
            return
        views = [buffer.raw() for buffer in buffers]
        try:
            self._write(Stage.RETURNED, head, views)
        except OSError as error:
            self.raised(error)

    def raised(self, error: BaseException) -> None:
        """The target has raised `error`."""
        try:
            packed = failure.pack_exception(error)
        except KeyboardInterrupt as interrupt:  # of a hook for pickling itself: Ctrl-C is kept away here
            packed = failure.pack_exception(interrupt)
        self._write(Stage.RAISED, packed, [])

    def leaves(self, processes: Iterable[ProcessIdentity]) -> None:
        """The child is ending, and these descendants of it are not."""
        told = list(processes)[:_MOST_LEFT]
        self._file.write(
            [_LEFT.pack(len(told)), *(_WHO.pack(process.pid, process.started) for process in told)],
            at=_LEFT_AT,
        )

    def _write(self, stage: Stage, head: bytes, views: list[memoryview]) -> None:
        pieces, _ = frame.lay_out(head, views, _BODY_AT)
        for at, piece in pieces:
            self._file.write([piece], at=at)
        # The stage comes last: killed half way, the child has reported nothing.
        self._file.write([_STAGE.pack(stage)], at=0)

    # --- in the parent ------------------------------------------------------------------------------------

    def unwanted(self, *, interrupts: bool = False) -> ProcessIdentity | None:
        """The child is not wanted: arriving from now on it ends at once. Who it is, if it has arrived.

        Args:
            interrupts: Whether it is interrupted then.
        """
        self._file.write([_UNWANTED.pack(1 + interrupts)], at=_UNWANTED_AT)
        pid, started = _WHO.unpack_from(self._words(), _WHO_AT)
        return ProcessIdentity(pid, started) if pid else None

    def read(self) -> tuple[Stage, object]:
        """How far the child came, and what it returned or raised.

        Raises:
            SerializationError: If the result cannot be unpickled here, or is damaged.
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
        """Which descendants the child has left, as far as it came to tell. They may have ended since."""
        words = self._words()
        (count,) = _LEFT.unpack_from(words, _LEFT_AT)
        records = _WHO.iter_unpack(words[_LEFT_AT + _LEFT.size :][: min(count, _MOST_LEFT) * _WHO.size])
        return [ProcessIdentity(pid, started) for pid, started in records]

    def stage(self) -> Stage:
        """How far the child came."""
        return Stage(*_STAGE.unpack_from(self._words()))

    def notes(self) -> bytes:
        """What it has noted (see `mpkit._platform.stdlib.notes`)."""
        return self._words()[_NOTES_AT:]

    def is_open(self) -> bool:
        """Whether it can be handed on: not where somebody has closed all descriptors (a daemon)."""
        with contextlib.suppress(OSError, ValueError):
            return self._file.fileno() >= 0
        return False

    def close(self) -> None:
        """Let go of the file; what was read from it stays."""
        self._file.close()

    # --- in both ------------------------------------------------------------------------------------------

    def _words(self) -> bytes:
        return self._file.read(_BODY_AT).ljust(_BODY_AT, b"\0")
