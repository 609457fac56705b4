"""Results as Markdown tables and as JSON. Nothing here measures."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks.workload import OWN, Outcome, Result, Verdict

#: The headings of the areas.
TITLES: Mapping[str, str] = {
    "queue": "Queues",
    "arrays": "Arrays through queues",
    "counter": "Counters",
    "lock": "Locks",
    "pool": "Pools",
    "imports": "Imports",
}


def number(value: float) -> str:
    """A value as a table shows it: three digits that count, with thousands apart."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:g}" if abs(rounded) >= 0.001 else f"{value:.1e}"


def times(ratio: float | None) -> str:
    """A ratio as a table shows it."""
    return "" if ratio is None else f"{number(ratio)}x"


def verdict_mark(verdict: Verdict) -> str:
    """Yes, no, or nothing said."""
    return {True: "yes", False: "**no**", None: "?"}[verdict.met]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column on the left, all others on the right."""
    lines = [_line(headings), _line(["---"] + ["---:"] * (len(headings) - 1))]
    lines += [_line(row) for row in rows]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def summary(results: Sequence[Result]) -> str:
    """One row for each workload: mpkit, the standard library, the best peer, and the targets."""
    rows = []
    for result in results:
        ours = result.outcome(OWN)
        baseline, best = result.workload.baseline, result.best_peer
        verdicts = result.verdicts()
        rows.append(
            (
                f"{result.workload.title} ({result.workload.unit})",
                _cell(ours),
                _compared(result, baseline),
                _compared(result, best, name=True),
                "<br>".join(f"{verdict.target}: {verdict.reached}" for verdict in verdicts),
                "<br>".join(verdict_mark(verdict) for verdict in verdicts),
            )
        )
    return table(("work", "mpkit", "standard library", "best peer", "target: reached", "met"), rows)


def _cell(outcome: Outcome | None) -> str:
    return number(outcome.median) if outcome is not None and outcome.median is not None else "failed"


def _compared(result: Result, contender: str, *, name: bool = False) -> str:
    outcome = result.outcome(contender) if contender else None
    if outcome is None or outcome.median is None:
        return ""
    who = f" {contender}" if name else ""
    ratio = times(result.ratio_to(contender))
    return f"{number(outcome.median)}{who}" + (f" ({ratio})" if ratio else "")


def everyone(results: Sequence[Result]) -> str:
    """One row for each workload and one column for each contender: the medians."""
    names = list(dict.fromkeys(outcome.contender for result in results for outcome in result.outcomes))
    rows = [
        (
            f"{result.workload.title} ({result.workload.unit})",
            *(_entry(next((o for o in result.outcomes if o.contender == name), None)) for name in names),
        )
        for result in results
    ]
    return table(("work", *names), rows)


def _entry(outcome: Outcome | None) -> str:
    if outcome is None or outcome.error == "has no such call":
        return ""
    if outcome.median is None:
        return "hangs" if outcome.error.startswith("hung") else "fails"
    return number(outcome.median)


def failures(results: Sequence[Result]) -> str:
    """A list of what went wrong; empty if nothing did."""
    lines = [
        f"- {result.workload.name}, {outcome.contender}: {outcome.error}"
        for result in results
        for outcome in result.outcomes
        if outcome.error and outcome.error != "has no such call"
    ]
    return "\n".join(lines) + "\n" if lines else ""


def as_json(results: Sequence[Result], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Everything, every sample included."""
    return {
        "conditions": dict(conditions),
        "workloads": [
            {
                "name": result.workload.name,
                "area": result.workload.area,
                "title": result.workload.title,
                "unit": result.workload.unit,
                "better": result.workload.better,
                "best_peer": result.best_peer,
                "contenders": [
                    {
                        "name": outcome.contender,
                        "median": outcome.median,
                        "spread": outcome.spread,
                        "times_better": result.ratio_to(outcome.contender)
                        if outcome.contender != OWN
                        else None,
                        "error": outcome.error,
                        "samples": [asdict(sample) if sample else None for sample in outcome.samples],
                    }
                    for outcome in result.outcomes
                ],
                "targets": [asdict(verdict) for verdict in result.verdicts()],
            }
            for result in results
        ],
    }


def conditions_line(conditions: Mapping[str, Any]) -> str:
    """A sentence on where and how the figures came about."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    # A full run goes without saying.
    size = "" if conditions["size"] == 1 else f", size {conditions['size']:g}"
    return (
        f"{conditions['system']}, {conditions['cpus']} CPUs, {conditions['python']}; "
        f"medians of {conditions['rounds']} interleaved rounds{size}; {versions}.\n"
    )


def replace_block(page: str, name: str, text: str) -> str:
    """`page` with what stands between ``<!-- benchmark: name -->`` and ``<!-- end -->`` replaced by `text`.

    Raises:
        ValueError: The page has no such block.
    """
    opening, closing = f"<!-- benchmark: {name} -->", "<!-- end -->"
    start = page.find(opening)
    end = page.find(closing, start)
    if start < 0 or end < 0:
        raise ValueError(f"the page has no block between {opening} and {closing}")
    # Blank lines, because a line that touches a table belongs to it.
    return f"{page[: start + len(opening)]}\n\n{text.strip()}\n\n{page[end:]}"
