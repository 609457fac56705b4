"""Runs workloads: every contender once, then every contender once more, and so on.

So if the machine gets busier during a run, that affects all contenders alike.
"""

from __future__ import annotations

import compileall
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import psutil

from benchmarks.workload import Outcome, Result, Sample, Scale, Workload

ROOT = Path(__file__).resolve().parent.parent

#: Called after each measurement, with workload, contender, round, sample, error and the seconds it took.
Progress = Callable[[Workload, str, int, Sample | None, str, float], None]


def run(
    workload: Workload, contenders: Sequence[str], scale: Scale, rounds: int, progress: Progress
) -> Result:
    """Measure `contenders` in turn, `rounds` times. One that fails twice in a row is not measured again."""
    samples: dict[str, list[Sample | None]] = {contender: [] for contender in contenders}
    errors: dict[str, str] = {}
    for turn in range(min(rounds, workload.rounds)):
        for contender in contenders:
            if len(samples[contender]) >= 2 and samples[contender][-2:] == [None, None]:
                continue
            begin = time.monotonic()
            sample, error = measure(workload, contender, scale)
            samples[contender].append(sample)
            if error:
                errors[contender] = error
            progress(workload, contender, turn, sample, error, time.monotonic() - begin)
            if error == UNSUPPORTED:
                samples[contender] += [None]
    return Result(
        workload,
        tuple(
            Outcome(contender, tuple(samples[contender]), errors.get(contender, ""))
            for contender in contenders
        ),
    )


#: The error of a measurement if the contender does not support the workload at all.
UNSUPPORTED = "has no such call"


def compile_sources() -> None:
    """Compile mpkit and the benchmarks, as an installation does; a checkout may have no current bytecode.

    Peers are installed, and so compiled already. If Python may not write bytecode
    (``PYTHONDONTWRITEBYTECODE``), each new interpreter or worker would otherwise compile mpkit again, which
    would be unfair.
    """
    for package in ("mpkit", "benchmarks"):
        spec = importlib.util.find_spec(package)
        for directory in (spec and spec.submodule_search_locations) or ():
            compileall.compile_dir(directory, quiet=1)


def measure(workload: Workload, contender: str, scale: Scale) -> tuple[Sample | None, str]:
    """Make one measurement, in a new interpreter; return the sample, or the error."""
    specification = json.dumps({"workload": workload.name, "contender": contender, "scale": asdict(scale)})
    with tempfile.TemporaryDirectory(prefix="mpkit-benchmark-") as directory:
        answer = Path(directory) / "answer.json"
        log = Path(directory) / "log.txt"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "benchmarks.cell", specification, str(answer)],
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
            try:
                process.wait(workload.timeout)
            except subprocess.TimeoutExpired:
                _end_tree(process)
                return None, f"hung: ended after {workload.timeout:g} s"
            except BaseException:
                _end_tree(process)
                raise
        if not answer.exists():
            return None, f"died with exit code {process.returncode}: {_last_line(log)}"
        outcome = json.loads(answer.read_text(encoding="utf-8"))
    if "error" in outcome:
        return None, outcome["error"]
    return Sample(outcome["value"], outcome["detail"]), ""


def _end_tree(process: subprocess.Popen[bytes]) -> None:
    """End a measurement and all processes that it started.

    Except resource trackers: these clean up after the others, and then end by themselves.
    """
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        family = []
    for member in family:
        try:
            if "resource_tracker" not in " ".join(member.cmdline()):
                member.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    process.wait()


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines else "nothing was printed"


def load_average() -> float:
    """How many processes wanted a CPU, on average over the last minute."""
    return os.getloadavg()[0]


def cpus() -> int:
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
