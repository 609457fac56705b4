"""The command line: what to run, with which contenders, how often, and where the results go."""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import peers, plot, report, runner
from benchmarks.workload import OWN, Result, Sample, Scale, Workload, is_own, is_yardstick
from benchmarks.workloads import AREAS, WORKLOADS

#: Where the documentation keeps tables and plots.
DOCUMENTS = runner.ROOT / "docs"
PAGE = DOCUMENTS / "explanation" / "performance.md"
PLOTS = DOCUMENTS / "benchmarks"


def parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    result = argparse.ArgumentParser(
        prog="python -m benchmarks",
        description="Measures mpkit beside the standard library and other packages, in turn, in one run.",
    )
    result.add_argument(
        "area", nargs="*", choices=[*AREAS, "all"], default="all", help="what to measure (all)"
    )
    result.add_argument(
        "--quick", action="store_true", help="a tenth of the work, one round: only to see whether it runs"
    )
    result.add_argument(
        "--only", metavar="NAME", action="append", help="only this workload (may be repeated)"
    )
    result.add_argument("--peers", metavar="NAME,...", help="only these peers; 'none' for mpkit alone")
    result.add_argument(
        "--repeats", type=_positive, metavar="N", help="rounds over all contenders (5; quick: 1)"
    )
    result.add_argument(
        "--start-method", choices=("fork", "forkserver", "spawn"), default="forkserver", help="of pools"
    )
    result.add_argument("--json", type=Path, metavar="OUT", help="write every sample to this file")
    result.add_argument(
        "--write", action="store_true", help=f"update {PAGE.name} and the plots of the documentation"
    )
    result.add_argument("--list", action="store_true", help="list the workloads and contenders, and exit")
    return result


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"at least 1, not {value}")
    return value


def chosen_workloads(areas: Sequence[str] | str, only: Sequence[str] | None) -> list[Workload]:
    """The workloads that the command line asks for.

    Raises:
        ValueError: A name in `only` is unknown.
    """
    for name in only or ():
        if name not in WORKLOADS:
            raise ValueError(f"no workload is called {name!r}; there are {', '.join(WORKLOADS)}")
    wanted = {areas} if isinstance(areas, str) else set(areas)
    return [
        workload
        for workload in WORKLOADS.values()
        if (workload.name in only if only else "all" in wanted or workload.area in wanted)
    ]


def chosen_contenders(workload: Workload, wanted: Sequence[str] | None) -> list[str]:
    """The contenders of `workload` to measure: mpkit always, and those in `wanted` (None: all)."""
    return [
        name
        for name in workload.contenders
        if is_own(name) or is_yardstick(name) or wanted is None or name in wanted
    ]


def wanted_peers(text: str | None) -> list[str] | None:
    """The peers that ``--peers`` names; None for all.

    Raises:
        ValueError: A peer is unknown.
    """
    if text is None:
        return None
    names = [name.strip() for name in text.split(",") if name.strip() and name.strip() != "none"]
    known = {name for workload in WORKLOADS.values() for name in workload.contenders}
    for name in names:
        if name not in known:
            raise ValueError(f"no contender is called {name!r}; there are {', '.join(sorted(known))}")
    return names


def main(arguments: Sequence[str]) -> int:
    """Run the command line and return its exit code: 0 unless mpkit failed or an argument is wrong."""
    options = parser().parse_args(arguments)
    try:
        workloads = chosen_workloads(options.area, options.only)
        wanted = wanted_peers(options.peers)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if options.list:
        for workload in workloads:
            print(f"{workload.name:20} {workload.area:8} {workload.title}: {', '.join(workload.contenders)}")
        return 0
    scale = Scale(0.1 if options.quick else 1.0, options.start_method)
    rounds = options.repeats or (1 if options.quick else 5)
    missing = _missing(workloads)
    for name in missing:
        print(f"{name} is not installed and is left out", file=sys.stderr)
    runner.compile_sources()
    results = []
    for workload in workloads:
        contenders = [name for name in chosen_contenders(workload, wanted) if name not in missing]
        result = runner.run(workload, contenders, scale, rounds, _tell)
        results.append(result)
        print(f"{report.summary([result])}\n{report.everyone([result])}", flush=True)
    conditions = _conditions(rounds, scale, missing)
    _print_end(results)
    if options.json:
        options.json.write_text(
            json.dumps(report.as_json(results, conditions), indent=1) + "\n", encoding="utf-8"
        )
    if options.write:
        write_documents(results, conditions)
    return 1 if any(result.outcome(OWN) is None for result in results) else 0


def write_documents(results: Sequence[Result], conditions: dict[str, Any]) -> None:
    """Update the tables of the page and the plots, for the areas that were measured."""
    page = PAGE.read_text(encoding="utf-8")
    PLOTS.mkdir(parents=True, exist_ok=True)
    for area in AREAS:
        found = [result for result in results if result.workload.area == area]
        if found:
            picture = (
                f"![{report.TITLES[area]}, relative to the standard library](../{PLOTS.name}/{area}.svg)"
            )
            text = f"{picture}\n\n{report.summary(found)}\n{_details(found)}"
            page = report.replace_block(page, area, text)
            (PLOTS / f"{area}.svg").write_text(plot.bars(report.TITLES[area], found), encoding="utf-8")
    page = report.replace_block(page, "conditions", report.conditions_line(conditions))
    PAGE.write_text(page, encoding="utf-8")


def _details(results: Sequence[Result]) -> str:
    # Folded: open, it would double the length of the page. (Code hosts understand <details>, too.)
    return (
        '<details markdown="1">\n<summary>Medians of all contenders</summary>\n\n'
        f"{report.everyone(results)}\n</details>\n"
    )


def _missing(workloads: Sequence[Workload]) -> list[str]:
    names = dict.fromkeys(name for workload in workloads for name in workload.contenders)
    return [name for name in names if peers.version_of(name) is None]


def _conditions(rounds: int, scale: Scale, missing: Sequence[str]) -> dict[str, Any]:
    distributions = {name for name in peers.DISTRIBUTIONS.values() if name is not None}
    found = {name: peers.version(name) for name in sorted(distributions, key=str.lower)}
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "cpus": runner.cpus(),
        "rounds": rounds,
        "size": scale.size,
        "start_method": scale.start_method,
        "load": runner.load_average(),
        "versions": {name: version for name, version in found.items() if version is not None},
        "missing": list(missing),
    }


def _tell(
    workload: Workload, contender: str, turn: int, sample: Sample | None, error: str, seconds: float
) -> None:
    found = f"{report.number(sample.value)} {workload.unit}" if sample else error
    print(
        f"  {workload.name} round {turn + 1}: {contender}: {found} (took {seconds:.1f} s)",
        file=sys.stderr,
        flush=True,
    )


def _print_end(results: Sequence[Result]) -> None:
    for area in AREAS:
        found = [result for result in results if result.workload.area == area]
        if found:
            print(f"## {report.TITLES[area]}\n\n{report.summary(found)}")
    verdicts = [verdict for result in results for verdict in result.verdicts()]
    met = sum(verdict.met is True for verdict in verdicts)
    print(f"{met} of {len(verdicts)} targets met.")
    trouble = report.failures(results)
    if trouble:
        print(f"\nWhat failed:\n\n{trouble}")
