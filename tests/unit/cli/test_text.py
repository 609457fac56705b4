"""Numbers and tables for a person to read."""

from __future__ import annotations

import pytest

from mpkit.cli import _text


@pytest.mark.parametrize(
    "number, text",
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1536, "1.5 KiB"),
        (24 << 20, "24.0 MiB"),
        (3 << 30, "3.0 GiB"),
        (5 << 40, "5.0 TiB"),
    ],
)
def test_size_uses_the_largest_unit_that_leaves_at_least_one(number: int, text: str) -> None:
    assert _text.size(number) == text


@pytest.mark.parametrize(
    "seconds, text",
    [
        (0.25, "0.25 s"),
        (59.99, "59.99 s"),
        (60, "1 min 0 s"),
        (3599.4, "59 min 59 s"),
        (7260, "2 h 1 min"),
        (90_000, "1 d 1 h"),
    ],
)
def test_duration_shows_the_two_largest_units(seconds: float, text: str) -> None:
    assert _text.duration(seconds) == text


def test_table_aligns_each_column_to_its_widest_cell() -> None:
    lines = _text.table(("NAME", "N"), [("a", "1,000"), ("longer", "2")], left=(0,))
    assert lines == ["NAME        N", "a       1,000", "longer      2"]


def test_table_without_rows_is_its_headings() -> None:
    assert _text.table(("A", "B"), []) == ["A  B"]


@pytest.mark.parametrize("text, short", [("abcdef", "abcdef"), ("abcdefg", "abc..."), ("", "")])
def test_shortened_keeps_to_the_width(text: str, short: str) -> None:
    assert _text.shortened(text, 6) == short


@pytest.mark.parametrize(
    "text, shown",
    [
        ("plain, caf\xe9", "plain, caf\xe9"),
        ("\x1b[31mred\x07", r"\x1b[31mred\x07"),
        ("\x9b31m\x7f", r"\x9b31m\x7f"),
        ("a\nb\tc", r"a\nb\tc"),
        ("\u202eback\u2028", r"\u202eback\u2028"),
        ("caf\udce9 \ud800", r"caf\xe9 \ud800"),
    ],
)
def test_what_a_terminal_would_act_on_is_shown_instead(text: str, shown: str) -> None:
    assert _text.visible(text) == shown


def test_lines_remain_lines() -> None:
    assert _text.visible_lines("a\x1b\n\n b\r\n") == "a\\x1b\n\n b\\r\n"
