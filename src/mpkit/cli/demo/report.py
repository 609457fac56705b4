"""The report that the demo prints at its end. Pure functions from results to lines of text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from mpkit.cli import _text

if TYPE_CHECKING:
    from mpkit.cli.demo.alone import Spent
    from mpkit.cli.demo.index import Outcome
    from mpkit.cli.demo.store import Index

_TOP = 10
_SHOWN_ERRORS = 5
_PATH_WIDTH = 50
_ERROR_WIDTH = 60


def summary(root: str, database: str, index: Index, outcome: Outcome) -> list[str]:
    """The report, without the comparison."""
    rate = index.totals().files / outcome.seconds
    workers = _text.counted(outcome.workers, "worker")
    took = f"{_text.duration(outcome.seconds)} with {workers} ({rate:,.0f} files/s)"
    return [
        f"Indexed {_text.visible(root)}",
        f"  in {took}; the index is {_text.visible(database)}",
        *_section("Totals", _totals(index, outcome)),
        *_section("Largest modules", _largest(index)),
        *_section("Most imported modules", _most_imported(index)),
        *_section("What each process did", _processes(outcome)),
    ]


def comparison(outcome: Outcome, alone: Spent, *, identical: bool) -> list[str]:
    """The comparison with the same work in one process."""
    pool_cpu_s = sum(used.cpu_s for used in outcome.used.values())
    workers = f"{_text.counted(outcome.workers, 'worker')} and the writer"
    one = f"{_text.duration(alone.seconds)} ({_text.duration(alone.cpu_s)} of CPU time)"
    many = f"{_text.duration(outcome.seconds)} ({_text.duration(pool_cpu_s)}) with {workers}"
    lines = [
        f"took {one}, against {many}",
        f"so the pool was {alone.seconds / outcome.seconds:.2f} times as fast",
        f"both results are {'identical' if identical else 'DIFFERENT'}",
    ]
    return _section("The same work in one process", lines)


def _totals(index: Index, outcome: Outcome) -> list[str]:
    totals = index.totals()
    numbers = {
        "lines": totals.lines,
        "tokens": totals.tokens,
        "functions": totals.functions,
        "classes": totals.classes,
    }
    counts = ", ".join(f"{_text.count(number)} {what}" for what, number in numbers.items())
    return [
        f"{_text.count(totals.files)} files, {_text.size(totals.size_bytes)}, {counts}",
        _agreement(totals.files, totals.size_bytes, outcome),
        *_errors(index, totals.with_error),
    ]


def _largest(index: Index) -> list[str]:
    rows = [
        (_shown(path, _PATH_WIDTH), _text.size(size), *map(_text.count, numbers))
        for path, size, *numbers in index.largest(_TOP)
    ]
    return _text.table(("MODULE", "SIZE", "LINES", "TOKENS", "FUNCTIONS"), rows, left=(0,))


def _most_imported(index: Index) -> list[str]:
    rows = [(_text.visible(module), _text.count(files)) for module, files in index.most_imported(_TOP)]
    return _text.table(("MODULE", "BY FILES"), rows, left=(0,))


def _agreement(files: int, size_bytes: int, outcome: Outcome) -> str:
    counted = outcome.counted
    if (counted.files, counted.size_bytes, outcome.rows) == (files, size_bytes, files):
        return "the shared counters, the writer and the database agree"
    said = f"{_text.count(counted.files)} files and {_text.count(counted.size_bytes)} bytes"
    return f"NOT AGREED: the counters say {said}, the writer says {_text.count(outcome.rows)} rows"


def _errors(index: Index, number: int) -> list[str]:
    if not number:
        return []
    shown = [
        f"  {_shown(path, _PATH_WIDTH)}: {_shown(reason, _ERROR_WIDTH)}"
        for path, reason in index.errors(_SHOWN_ERRORS)
    ]
    return [
        f"{_text.count(number)} could not be measured in full (see the column error in the index), such as",
        *shown,
    ]


def _processes(outcome: Outcome) -> list[str]:
    did = [("worker", pid, f"{_text.count(files)} files") for pid, files in outcome.tasks.most_common()]
    did.append(("writer", outcome.writer_pid, f"{_text.count(outcome.rows)} rows"))
    rows: list[tuple[str, ...]] = []
    for role, pid, work in did:
        # None if the worker started and ended between two looks.
        used = outcome.used.get(pid)
        rows.append(
            (role, str(pid), work)
            + ((f"{used.cpu_s:.2f} s", _text.size(used.peak_rss_bytes)) if used else ("not seen", "not seen"))
        )
    return _text.table(("PROCESS", "PID", "DID", "CPU TIME", "PEAK MEMORY"), rows, left=(0,))


def _shown(text: str, width: int) -> str:
    return _text.shortened(_text.visible(text), width)


def _section(heading: str, lines: list[str]) -> list[str]:
    return ["", heading, *(f"  {line}" for line in lines)]
