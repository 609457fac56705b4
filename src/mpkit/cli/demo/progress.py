"""The line that says how far it has got."""

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
    """One line on a terminal, written over and over again.

    Args:
        out: where to; None, the default, is standard error if that is a terminal, else nowhere.
        shown: False says nothing at all.
    """

    def __init__(self, out: TextIO | None = None, *, shown: bool = True) -> None:
        self._out = out if out is not None else sys.stderr if sys.stderr.isatty() else None
        if not shown:
            self._out = None
        self._width = 0
        self._started = time.perf_counter()

    def restart(self) -> None:
        """A new piece of work begins now."""
        self._started = time.perf_counter()

    def show(self, what: str, done: Amount, more: str = "") -> None:
        """Replace the line."""
        rate = done.files / max(time.perf_counter() - self._started, 1e-9)
        amount = f"{_text.count(done.files)} files, {_text.size(done.size_bytes)}"
        self._write(f"{what}: {amount}, {rate:,.0f} files/s{more}")

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        if self._width:
            self._write("")
            self._width = 0
            if self._out is not None:
                self._out.write("\r")
                self._out.flush()

    def _write(self, text: str) -> None:
        if self._out is None:
            return
        self._out.write("\r" + text.ljust(self._width))
        self._out.flush()
        self._width = len(text)
