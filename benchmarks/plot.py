"""Bar charts in SVG, relative to the standard library. Written by hand, so that no package is needed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from benchmarks.report import number, times
from benchmarks.workload import OWN, Outcome, Result, is_own, is_yardstick

_WIDTH = 860
_LABELS = 190  # width for the names, on the left
_VALUES = 170  # width for the figures, on the right
_SHORTEST = 24  # length of the slowest contender's bar
_BAR, _GAP, _TITLE, _BETWEEN = 15, 3, 26, 16

# They differ in lightness as well as in colour, and can be read on a light and on a dark page.
_OURS, _STDLIB, _OTHERS, _INK = "#c2410c", "#3b82c4", "#8a97a8", "#7a8594"


def bars(title: str, results: Sequence[Result]) -> str:
    """An SVG picture with a group of bars for each result that compares at least two contenders.

    A result in which the value of a contender is 0 has no group, only its row in the tables: the best
    contender could have no bar.

    The length of a bar is the logarithm of how many times better the contender is than the slowest of its
    group. All groups have the same scale, so that factors of 2 and of 200 are both visible. The figures
    beside a bar are the median and the ratio to the standard library.
    """
    scale = _scale(results)
    body: list[str] = []
    y = 40
    for result in results:
        shown = _ranked(result)
        if len(shown) < 2:
            continue
        body.append(_text(12, y + 15, f"{result.workload.title} ({result.workload.unit})", weight="bold"))
        y += _TITLE
        goodness = [_goodness(result, outcome) for outcome in shown]
        worst = min(goodness)
        for outcome, good in zip(shown, goodness, strict=True):
            length = _SHORTEST + scale * math.log(good / worst)
            paint = _paint(result, outcome)
            baseline = result.outcome(result.workload.baseline) if result.workload.baseline else None
            ratio = good / _goodness(result, baseline) if baseline else None
            figure = number(outcome.median or 0.0) + (f"  ({times(ratio)})" if ratio else "")
            body.append(_text(_LABELS, y + 12, outcome.contender, anchor="end"))
            body.append(
                f'<rect x="{_LABELS + 8}" y="{y}" width="{length:.1f}" height="{_BAR}" rx="2" {paint}/>'
            )
            body.append(_text(_LABELS + 14 + length, y + 12, figure))
            y += _BAR + _GAP
        y += _BETWEEN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" height="{y}" '
        f'role="img" font-family="system-ui, sans-serif" font-size="12" fill="{_INK}">'
    )
    caption = _text(
        12, 20, f"{title}: longer is better (logarithmic); in brackets, times the standard library", size=13
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", caption, *body, "</svg>", ""])


def _ranked(result: Result) -> list[Outcome]:
    shown = [outcome for outcome in result.outcomes if outcome.median is not None]
    if any(outcome.median == 0 for outcome in shown):
        return []
    return sorted(shown, key=lambda outcome: -_goodness(result, outcome))


def _goodness(result: Result, outcome: Outcome) -> float:
    median = outcome.median or math.nan
    return median if result.workload.better == "higher" else 1 / median


def _scale(results: Sequence[Result]) -> float:
    """The pixels for a factor of e, such that the largest factor of all (10 at least) fills the width."""
    widest = 10.0
    for result in results:
        goodness = [_goodness(result, outcome) for outcome in _ranked(result)]
        if goodness:
            widest = max(widest, max(goodness) / min(goodness))
    return (_WIDTH - _LABELS - _VALUES - _SHORTEST) / math.log(widest)


def _paint(result: Result, outcome: Outcome) -> str:
    if is_yardstick(outcome.contender):
        # A yardstick, which does not compete: only an outline.
        return f'fill="none" stroke="{_OTHERS}"'
    if is_own(outcome.contender):
        return f'fill="{_OURS}"'
    return f'fill="{_STDLIB if outcome.contender == result.workload.baseline else _OTHERS}"'


def _text(
    x: float, y: float, text: str, *, anchor: str = "start", weight: str = "normal", size: int = 12
) -> str:
    own = text == OWN
    return (
        f'<text x="{x:.1f}" y="{y}" text-anchor="{anchor}" font-size="{size}" '
        f'font-weight="{"bold" if own else weight}">{escape(text)}</text>'
    )
