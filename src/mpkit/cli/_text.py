"""Numbers, tables and foreign text, formatted for people."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

_MINUTE = 60
_HOUR = 60 * _MINUTE
_DAY = 24 * _HOUR
_KIBI = 1024


def size(number: float) -> str:
    """Bytes in the largest unit that leaves at least 1: ``512 B``, ``1.5 KiB``, ``24.0 MiB``."""
    if abs(number) < _KIBI:
        return f"{number:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        number /= _KIBI
        if abs(number) < _KIBI:
            return f"{number:.1f} {unit}"
    return f"{number / _KIBI:.1f} TiB"


def duration(seconds: float) -> str:
    """A length of time in its two largest units: ``0.25 s``, ``3 min 20 s``, ``2 d 4 h``."""
    if seconds < _MINUTE:
        return f"{seconds:.2f} s"
    whole = round(seconds)
    if whole < _HOUR:
        return f"{whole // _MINUTE} min {whole % _MINUTE} s"
    if whole < _DAY:
        return f"{whole // _HOUR} h {whole % _HOUR // _MINUTE} min"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def count(number: int) -> str:
    """A whole number with thousands separators."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A whole number of things: ``1 worker``, ``1,000 workers``."""
    return f"{count(number)} {noun}" if number == 1 else f"{count(number)} {noun}s"


def table(headings: Sequence[str], rows: Sequence[Sequence[str]], *, left: Sequence[int] = ()) -> list[str]:
    """Lines of a table: columns as wide as their widest cell, numbers to the right.

    Args:
        headings: one for each column.
        rows: the cells, as text.
        left: the numbers of the columns that are aligned to the left; the others are aligned to the right.
    """
    widths = [max(len(cell) for cell in column) for column in zip(headings, *rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in (headings, *rows)
    ]


def visible(text: str) -> str:
    r"""Foreign text, made safe for a terminal and for a cell of a table.

    Characters that a terminal would act on (control characters, escape sequences, changes of the writing
    direction) and bytes that could not be decoded become escapes: ``\x1b``, ``\u202e``, ``\xff``.
    """
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else _escape(character) for character in text)


def visible_lines(text: str) -> str:
    """The same for text of several lines; line breaks stay."""
    return "\n".join(map(visible, text.split("\n")))


def _escape(character: str) -> str:
    number = ord(character)
    # A byte that could not be decoded ("surrogateescape").
    if 0xDC80 <= number <= 0xDCFF:
        return f"\\x{number - 0xDC00:02x}"
    return character.encode("unicode_escape").decode()


def shortened(text: str, width: int) -> str:
    """`text` in at most `width` characters; three dots replace what does not fit."""
    return text if len(text) <= width else f"{text[: max(width - 3, 0)]}..."[:width]
