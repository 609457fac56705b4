"""What is measured, what is aimed at, and the arithmetic between them. Nothing here runs anything."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

Better = Literal["higher", "lower"]

#: The package that all others are compared with.
OWN: Final = "mpkit"

#: In a target: whichever contender other than mpkit came out best in this run, the standard library included.
BEST: Final = "the best peer"


@dataclass(frozen=True)
class Scale:
    """How much work one measurement does.

    Attributes:
        size: what to multiply numbers of items and seconds with; 1 is the full run.
        start_method: how pools start their workers, where the contender lets one choose.
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
    """One measurement: its value, and whatever else was seen."""

    value: float
    detail: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """All measurements of one contender in one workload.

    Attributes:
        samples: one for each round, None where a round failed.
        error: what the last failure said; empty if there was none.
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
        """Half the distance between the quartiles in parts of the median: how much to trust the median."""
        values = self.values
        if len(values) < 3 or not self.median:
            return None
        low, _, high = statistics.quantiles(values, n=4, method="inclusive")
        return (high - low) / 2 / self.median


def times_better(ours: Outcome, theirs: Outcome, better: Better) -> float | None:
    """How many times better `ours` is than `theirs`: above 1 is better, whichever direction is.

    The median of the ratios round by round, because what disturbs a machine disturbs neighbours in time
    alike.
    None where no round has both.
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
    """What became of a target: its text, what was reached, whether that is enough (None: not measured)."""

    target: str
    reached: str
    met: bool | None


@dataclass(frozen=True)
class AtLeastTimes:
    """`of` is at least `times` as good as contender `than`."""

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
    """The median of `of` is at most (or, `at_least`, at least) `limit`, in the unit of the workload.

    Attributes:
        key: judge this entry of the details instead of the value.
        unit: the unit of that entry.
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
        name: what ``--only`` takes.
        area: the module and the argument of the command line.
        title: what the table says.
        unit: the unit of the value.
        better: which direction is better.
        run: measures one contender once; runs in an interpreter of its own.
        contenders: who takes part, mpkit first.
        baseline: the contender of the standard library that the row is compared with; empty if there is none.
        targets: what mpkit aims at here.
        rounds: how many rounds at most; fewer for long workloads.
        timeout: seconds after which one measurement counts as hung.
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
    """A workload and what its contenders did."""

    workload: Workload
    outcomes: tuple[Outcome, ...]

    def outcome(self, contender: str) -> Outcome | None:
        """What `contender` did; None if it did not take part or never succeeded."""
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
        """The name of the best of them; empty if there is none."""
        return next((peer.contender for peer in self.peers if not is_yardstick(peer.contender)), "")

    def ratio_to(self, contender: str) -> float | None:
        """How many times better mpkit is than `contender`."""
        ours, theirs = self.outcome(OWN), self.outcome(contender)
        return times_better(ours, theirs, self.workload.better) if ours and theirs else None

    def verdicts(self) -> Sequence[Verdict]:
        """What became of the targets."""
        return [target.judge(self) for target in self.workload.targets]


def is_own(contender: str) -> bool:
    """Whether `contender` is mpkit, or a variant of it such as ``mpkit share``."""
    return contender == OWN or contender.startswith(f"{OWN} ")


#: Contenders that show what the machine gives, and do not compete.
YARDSTICKS: Final = frozenset({"memory copy", "bare Python"})


def is_yardstick(contender: str) -> bool:
    """Whether `contender` only shows what the machine gives."""
    return contender in YARDSTICKS
