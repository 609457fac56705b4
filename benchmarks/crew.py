"""Runs processes ("members") that get ready, begin their work together, and measure their own times.

So the time that it takes to start them does not count.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from multiprocessing.synchronize import Barrier
from typing import Any

from benchmarks.workload import Sample

#: How many seconds a member may take to get ready. `benchmarks.runner` limits the whole measurement.
_READY_SECONDS = 60.0


class Gate:
    """Where a member waits for the others, and which records when its work starts and stops."""

    def __init__(self, barrier: Barrier) -> None:
        self._barrier = barrier
        self.started = 0.0
        self.ended = 0.0
        self.cpu = 0.0

    def start(self) -> None:
        """Wait until all members are ready, then start the clock."""
        self._barrier.wait(_READY_SECONDS)
        # `perf_counter` is CLOCK_MONOTONIC, so that the times of different processes can be compared.
        self.cpu = -time.process_time()
        self.started = time.perf_counter()

    def stop(self) -> None:
        """Stop the clock: the work is done."""
        self.ended = time.perf_counter()
        self.cpu += time.process_time()


@dataclass(frozen=True)
class Report:
    """What a member did: when its work started and ended, the CPU time of all its threads, and its result."""

    started: float
    ended: float
    cpu: float
    value: Any


Member = tuple[Callable[..., Any], tuple[Any, ...]]


def run_together(context: BaseContext, members: Sequence[Member]) -> list[Report]:
    """Run each ``function(gate, *arguments)`` in a process of its own, and return what they did, in order.

    Raises:
        RuntimeError: A member raised; its traceback is in the text.
    """
    barrier = context.Barrier(len(members))
    pipes: list[Connection] = []
    processes = []
    for function, arguments in members:
        ours, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_run_member, args=(function, arguments, Gate(barrier), theirs))  # type: ignore[attr-defined]
        process.start()
        theirs.close()
        pipes.append(ours)
        processes.append(process)
    reports: list[Report] = []
    failures: list[str] = []
    for pipe in pipes:
        with pipe:
            try:
                outcome = pipe.recv()
            except EOFError:
                outcome = "a member died without reporting anything"
        if isinstance(outcome, Report):
            reports.append(outcome)
        else:
            failures.append(outcome)
    if failures:
        for process in processes:
            process.kill()
    for process in processes:
        process.join()
    if failures:
        raise RuntimeError("\n".join(failures))
    return reports


def span(reports: Sequence[Report]) -> float:
    """The seconds from the first start to the last end."""
    return max(report.ended for report in reports) - min(report.started for report in reports)


def rate(reports: Sequence[Report], count: int) -> Sample:
    """The rate at which `count` items were worked off, per second, and the CPU time per item of all members.

    On a busy machine the CPU time says more than the rate.
    """
    cpu = sum(report.cpu for report in reports)
    return Sample(count / span(reports), {"CPU us each": cpu / count * 1e6})


def _run_member(
    function: Callable[..., Any], arguments: tuple[Any, ...], gate: Gate, pipe: Connection
) -> None:
    try:
        value = function(gate, *arguments)
        pipe.send(Report(gate.started, gate.ended, gate.cpu, value))
    except BaseException:
        pipe.send(traceback.format_exc())
        gate._barrier.abort()
        raise
