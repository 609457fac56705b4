"""The types of what is measured, the targets, and their arithmetic. Nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Better = Literal["higher", "lower"]

#: The contender that all others are compared with.
OWN: Final = "mpkit"

#: In a target, this stands for the best contender of the run except mpkit. It may be the standard library.
BEST: Final = "the best peer"


@dataclass(frozen=True)
class Scale:
    """How much work one measurement does.

    Attributes:
        size: The factor for numbers of items and seconds; 1 for the full run.
        start_method: How pools start their workers, if the contender lets one choose.
    """

    size: float = 1.0
    start_method: str = "forkserver"

    def count(self, full: int, *, at_least: int = 1) -> int:
        """`full` items, scaled."""
        return max(int(full * self.size), at_least)

    def seconds(self, full: float, *, at_least: float = 1.0) -> float:
        """`full` seconds, scaled."""
        return max(full * self.size, at_least)


@dataclass(frozen=True)
class Sample:
    """One measurement: its value, and other figures as details."""

    value: float
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All measurements of one contender in one workload.

    Attributes:
        samples: One for each round; None if the round failed.
        error: The error of the last round that failed; empty if none did.
    """

    contender: str
    samples: tuple[Sample | None, ...]
    error: str = ""

    @property
    def values(self) -> list[float]:
        """The values of the rounds that succeeded."""
        return [sample.value for sample in self.samples if sample is not None]

    @property
    def median(self) -> float | None:
        """The median of the rounds that succeeded; None if none did."""
        return statistics.median(self.values) if self.values else None

    @property
    def spread(self) -> float | None:
        """Half the distance between the quartiles, relative to the median. The smaller, the more reliable."""
        values = self.values
        if len(values) < 3 or not self.median:
            return None
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def times_better(ours: Outcome, theirs: Outcome, better: Better) -> float | None:
    """How many times better `ours` is than `theirs`: above 1 if it is better, in whichever direction that is.

    This is the median of the ratios of each round, because a disturbance of the machine affects measurements
    that follow each other alike. None if there is no round with both.
    """
    ratios = [
        ratio
        for one, other in zip(ours.samples, theirs.samples, strict=False)
        if one is not None
        and other is not None
        and (ratio := _ratio(one.value, other.value, better)) is not None
    ]
    return statistics.median(ratios) if ratios else None


def _ratio(ours: float, theirs: float, better: Better) -> float | None:
    top, bottom = (ours, theirs) if better == "higher" else (theirs, ours)
    return top / bottom if bottom > 0 else None


@dataclass(frozen=True)
class Verdict:
    """What became of a target: its text, the value reached, and whether it is enough (None: not measured)."""

    target: str
    reached: str
    met: bool | None


@dataclass(frozen=True)
class AtLeastTimes:
    """The target that `of` is at least `times` times as good as the contender `than`."""

    times: float
    than: str
    of: str = OWN

    def judge(self, result: Result) -> Verdict:
        """Compare with `result`."""
        than = result.best_peer if self.than == BEST else self.than
        text = f"{_times(self.times)} {self.than}"
        ours, theirs = result.outcome(self.of), result.outcome(than) if than else None
        ratio = times_better(ours, theirs, result.workload.better) if ours and theirs else None
        if ratio is None:
            return Verdict(text, "not measured", None)
        name = f" ({than})" if self.than == BEST else ""
        return Verdict(text, f"{ratio:.3g} times{name}", ratio >= self.times)


@dataclass(frozen=True)
class Within:
    """The target that the median of `of` is at most (with `at_least`: at least) `limit`.

    Attributes:
        key: Judge this entry of the details instead of the value.
        unit: The unit of that entry; otherwise it is that of the workload.
    """

    limit: float
    at_least: bool = False
    of: str = OWN
    key: str = ""
    unit: str = ""

    def judge(self, result: Result) -> Verdict:
        """Compare with `result`."""
        unit = self.unit if self.key else result.workload.unit
        what = f"{self.key}: " if self.key else ""
        text = f"{what}{'at least' if self.at_least else 'at most'} {self.limit:g} {unit}".rstrip()
        ours = result.outcome(self.of)
        values = _values(ours, self.key) if ours else []
        if not values:
            return Verdict(text, "not measured", None)
        median = statistics.median(values)
        met = median >= self.limit if self.at_least else median <= self.limit
        return Verdict(text, f"{what}{median:.3g} {unit}".rstrip(), met)


Target = AtLeastTimes | Within


def _values(outcome: Outcome, key: str) -> list[float]:
    if not key:
        return outcome.values
    return [sample.detail[key] for sample in outcome.samples if sample is not None and key in sample.detail]


def _times(times: float) -> str:
    if times == 1:
        return "as good as"
    if times < 1:
        return f"within {1 / times:.3g} times of"
    return f"at least {times:g} times"


@dataclass(frozen=True)
class Workload:
    """One row of the comparison.

    Attributes:
        name: The name for ``--only``.
        area: The name of its module, which is also an argument of the command line.
        title: Its text in the table.
        unit: The unit of the value.
        better: Whether higher or lower values are better.
        run: Measures one contender once; called in a new interpreter.
        contenders: All that take part, mpkit first.
        baseline: The contender of the standard library that others are compared with; empty if there is none.
        targets: What mpkit is meant to reach.
        rounds: The highest number of rounds; lower for long workloads.
        timeout: The seconds after which a measurement counts as hung.
    """

    name: str
    area: str
    title: str
    unit: str
    better: Better
    run: Callable[[str, Scale], Sample]
    contenders: tuple[str, ...]
    baseline: str = ""
    targets: tuple[Target, ...] = ()
    rounds: int = 99
    timeout: float = 60.0


@dataclass(frozen=True)
class Result:
    """A workload and the outcomes of its contenders."""

    workload: Workload
    outcomes: tuple[Outcome, ...]

    def outcome(self, contender: str) -> Outcome | None:
        """The outcome of `contender`; None if it did not take part or never succeeded."""
        found = next((outcome for outcome in self.outcomes if outcome.contender == contender), None)
        return found if found is not None and found.values else None

    @property
    def peers(self) -> list[Outcome]:
        """The contenders other than mpkit (and its variants) that succeeded, best first."""
        peers = [outcome for outcome in self.outcomes if outcome.values and not is_own(outcome.contender)]
        sign = -1 if self.workload.better == "higher" else 1
        return sorted(peers, key=lambda outcome: sign * (outcome.median or 0.0))

    @property
    def best_peer(self) -> str:
        """The name of the best peer; empty if there is none."""
        return next((peer.contender for peer in self.peers if not is_yardstick(peer.contender)), "")

    def ratio_to(self, contender: str) -> float | None:
        """How many times better mpkit is than `contender`."""
        ours, theirs = self.outcome(OWN), self.outcome(contender)
        return times_better(ours, theirs, self.workload.better) if ours and theirs else None

    def verdicts(self) -> Sequence[Verdict]:
        """For each target, whether it was reached."""
        return [target.judge(self) for target in self.workload.targets]


def is_own(contender: str) -> bool:
    """Whether `contender` is mpkit, or a variant of it such as ``mpkit share``."""
    return contender == OWN or contender.startswith(f"{OWN} ")


#: Contenders that only show what the machine can do, and do not compete.
YARDSTICKS: Final = frozenset({"memory copy", "bare Python"})


def is_yardstick(contender: str) -> bool:
    """Whether `contender` only shows what the machine can do."""
    return contender in YARDSTICKS
