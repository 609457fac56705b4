"""The line that shows the progress."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, NamedTuple

from mpkit.cli import _text

if TYPE_CHECKING:
    from typing import TextIO


class Amount(NamedTuple):
    """How much has been done."""

    files: int
    size_bytes: int


class ProgressLine:
    """One line on a terminal, which is overwritten again and again.

    Args:
        out: where to write it. None, the default: standard error if that is a terminal, else nowhere.
        shown: False: write nothing.
    """

    def __init__(self, out: TextIO | None = None, *, shown: bool = True) -> None:
        self._out = (out or _terminal()) if shown else None
        self._width = 0
        self._started = time.perf_counter()

    def restart(self) -> None:
        """Begin to measure the rate anew: another piece of work begins now."""
        self._started = time.perf_counter()

    def show(self, what: str, done: Amount, more: str = "") -> None:
        """Replace the line."""
        rate = done.files / max(time.perf_counter() - self._started, 1e-9)
        amount = f"{_text.count(done.files)} files, {_text.size(done.size_bytes)}"
        self._write(f"{what}: {amount}, {rate:,.0f} files/s{more}")

    def clear(self) -> None:
        """Erase the line, so that something else can be printed."""
        if self._width:
            self._write("")
            self._width = 0
            self._send("\r")

    def _write(self, text: str) -> None:
        self._send("\r" + text.ljust(self._width))
        self._width = len(text)

    def _send(self, text: str) -> None:
        if self._out is None:
            return
        try:
            self._out.write(text)
            self._out.flush()
        except OSError:
            # The terminal is gone; the work goes on.
            self._out = None


def _terminal() -> TextIO | None:
    # `sys.stderr` is None if the program was started with it closed.
    return sys.stderr if sys.stderr is not None and sys.stderr.isatty() else None
