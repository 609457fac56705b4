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
    """Format a value for a table: three significant digits, thousands separated."""
    if value == 0:
        return "0"
    rounded = float(f"{value:.3g}")
    if abs(rounded) >= 1000:
        return f"{rounded:,.0f}"
    return f"{rounded:g}" if abs(rounded) >= 0.001 else f"{value:.1e}"


def times(ratio: float | None) -> str:
    """Format a ratio for a table."""
    return "" if ratio is None else f"{number(ratio)}x"


def verdict_mark(verdict: Verdict) -> str:
    """Format a verdict: yes, no, or nothing if it was not measured."""
    return {True: "yes", False: "**no**", None: "?"}[verdict.met]


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table. The first column is aligned left, all others right."""
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
    """A list of all failures; empty if there were none."""
    lines = [
        f"- {result.workload.name}, {outcome.contender}: {outcome.error}"
        for result in results
        for outcome in result.outcomes
        if outcome.error and outcome.error != "has no such call"
    ]
    return "\n".join(lines) + "\n" if lines else ""


def as_json(results: Sequence[Result], conditions: Mapping[str, Any]) -> dict[str, Any]:
    """All results as JSON, including every sample."""
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
    """A sentence that says on which machine and how the measurements were made."""
    versions = ", ".join(f"{name} {version}" for name, version in conditions["versions"].items())
    # Mention only what differs from a full run.
    size = "" if conditions["size"] == 1 else f", size {conditions['size']:g}"
    return (
        f"{conditions['system']}, {conditions['cpus']} CPUs, {conditions['python']}; "
        f"medians of {conditions['rounds']} interleaved rounds{size}; {versions}.\n"
    )


def replace_block(page: str, name: str, text: str) -> str:
    """Replace the text between ``<!-- benchmark: name -->`` and ``<!-- end -->`` in `page`.

    Raises:
        ValueError: The page has no such block.
    """
    opening, closing = f"<!-- benchmark: {name} -->", "<!-- end -->"
    start = page.find(opening)
    end = page.find(closing, start)
    if start < 0 or end < 0:
        raise ValueError(f"the page has no block between {opening} and {closing}")
    # Blank lines around it: otherwise Markdown would take the comments for a part of the table.
    return f"{page[: start + len(opening)]}\n\n{text.strip()}\n\n{page[end:]}"
