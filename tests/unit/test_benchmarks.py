"""The arithmetic, the tables and the command line of the benchmarks. Nothing is measured here."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET

import pytest

from benchmarks import cli, peers, plot, report
from benchmarks.pool import _longest_idle
from benchmarks.workload import (
    BEST,
    AtLeastTimes,
    Better,
    Outcome,
    Result,
    Sample,
    Scale,
    Target,
    Within,
    Workload,
    times_better,
)
from benchmarks.workloads import AREAS, WORKLOADS


def outcome(contender: str, *values: float | None, error: str = "") -> Outcome:
    return Outcome(contender, tuple(None if value is None else Sample(value) for value in values), error)


def workload(*targets: Target, better: Better = "higher", unit: str = "items/s") -> Workload:
    return Workload(
        "small",
        "queue",
        "small items",
        unit,
        better,
        lambda _, __: Sample(1.0),
        ("mpkit", "slow", "quick"),
        "slow",
        targets,
    )


def result(*targets: Target, better: Better = "higher") -> Result:
    outcomes = (
        outcome("mpkit", 600.0, 700.0, 650.0),
        outcome("slow", 100.0, 100.0, 100.0),
        outcome("quick", 300.0, 350.0, 325.0),
    )
    return Result(workload(*targets, better=better), outcomes)


# -- arithmetic ----------------------------------------------------------------------------------------------


def test_the_median_leaves_failed_rounds_out() -> None:
    assert outcome("a", 3.0, None, 1.0, 2.0).median == 2.0
    assert outcome("a", None, None).median is None


def test_the_spread_is_half_the_distance_of_the_quartiles_relative_to_the_median() -> None:
    assert outcome("a", 8.0, 9.0, 10.0, 11.0, 12.0).spread == pytest.approx(0.1)
    assert outcome("a", 8.0, 9.0).spread is None


def test_a_ratio_compares_measurements_of_the_same_round() -> None:
    # Half-way through, the machine became twice as fast. The ratio of the medians would be 3.
    ours, theirs = outcome("a", 20.0, 20.0, 40.0, 40.0), outcome("b", 10.0, 10.0, 20.0, 20.0)
    assert times_better(ours, theirs, "higher") == 2.0
    assert times_better(outcome("a", 20.0, 60.0, 40.0), outcome("b", 10.0, None, 20.0), "higher") == 2.0


def test_a_ratio_above_one_is_better_whichever_direction_is() -> None:
    assert times_better(outcome("a", 10.0), outcome("b", 40.0), "lower") == 4.0
    assert times_better(outcome("a", 10.0), outcome("b", 40.0), "higher") == 0.25


@pytest.mark.parametrize("theirs", [outcome("b"), outcome("b", None), outcome("b", 0.0)])
def test_no_ratio_where_there_is_nothing_to_divide_by(theirs: Outcome) -> None:
    assert times_better(outcome("a", 10.0), theirs, "higher") is None


def test_the_best_peer_is_neither_mpkit_nor_a_yardstick() -> None:
    outcomes = (
        *result().outcomes,
        outcome("mpkit share", 9000.0),
        outcome("memory copy", 8000.0),
        outcome("gone", None),
    )
    assert Result(workload(), outcomes).best_peer == "quick"
    assert Result(workload(better="lower"), outcomes).best_peer == "slow"
    assert Result(workload(), outcomes[:1]).best_peer == ""


# -- targets -------------------------------------------------------------------------------------------------


def test_a_target_relative_to_a_contender() -> None:
    met, missed = result(AtLeastTimes(6, "slow"), AtLeastTimes(7, "slow")).verdicts()
    assert (met.target, met.reached, met.met) == ("at least 6 times slow", "6.5 times", True)
    assert missed.met is False


def test_a_target_relative_to_the_best_peer_names_it() -> None:
    (verdict,) = result(AtLeastTimes(2, BEST)).verdicts()
    assert (verdict.reached, verdict.met) == ("2 times (quick)", True)


def test_a_target_relative_to_a_contender_that_was_not_measured() -> None:
    (verdict,) = result(AtLeastTimes(2, "absent")).verdicts()
    assert (verdict.reached, verdict.met) == ("not measured", None)


@pytest.mark.parametrize(
    "times, text",
    [(1, "as good as slow"), (0.1, "within 10 times of slow"), (2.5, "at least 2.5 times slow")],
)
def test_targets_read_as_sentences(times: float, text: str) -> None:
    assert result(AtLeastTimes(times, "slow")).verdicts()[0].target == text


def test_a_limit() -> None:
    below, above = result(Within(650), Within(650, at_least=True)).verdicts()
    assert (below.target, below.met) == ("at most 650 items/s", True)
    assert (above.target, above.met) == ("at least 650 items/s", True)
    assert result(Within(649)).verdicts()[0].met is False


def test_a_limit_on_a_detail() -> None:
    samples = (Sample(1.0, {"left behind": 2.0}), Sample(1.0, {"left behind": 4.0}), Sample(1.0))
    found = Result(workload(Within(2, key="left behind", unit="files")), (Outcome("mpkit", samples),))
    (verdict,) = found.verdicts()
    assert (verdict.target, verdict.reached) == ("left behind: at most 2 files", "left behind: 3 files")
    assert verdict.met is False


# -- tables --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value, text",
    [
        (0, "0"),
        (1234567, "1,230,000"),
        (999.6, "1,000"),
        (12.345, "12.3"),
        (0.0123456, "0.0123"),
        (0.00001, "1.0e-05"),
    ],
)
def test_numbers(value: float, text: str) -> None:
    assert report.number(value) == text


def test_a_table_escapes_what_would_break_it() -> None:
    assert report.table(("a", "b"), [("x | y", "1")]) == "| a | b |\n| --- | ---: |\n| x \\| y | 1 |\n"


def test_the_summary_shows_values_ratios_and_targets() -> None:
    line = report.summary([result(AtLeastTimes(6, "slow"), AtLeastTimes(3, BEST))]).splitlines()[2]
    assert line == (
        "| small items (items/s) | 650 | 100 (6.5x) | 325 quick (2x) | at least 6 times slow: 6.5 times<br>"
        "at least 3 times the best peer: 2 times (quick) | yes<br>**no** |"
    )


def test_the_summary_says_when_mpkit_failed() -> None:
    found = Result(
        workload(AtLeastTimes(1, "slow")), (outcome("mpkit", None, error="boom"), outcome("slow", 1.0))
    )
    assert "| failed | 1 |" in report.summary([found])
    assert report.failures([found]) == "- small, mpkit: boom\n"


def test_the_full_table_distinguishes_failed_from_unsupported() -> None:
    outcomes = (
        outcome("mpkit", 5.0),
        outcome("slow", None, error="has no such call"),
        outcome("quick", None, error="hung: ended after 60 s"),
    )
    assert (
        report.everyone([Result(workload(), outcomes)]).splitlines()[2]
        == "| small items (items/s) | 5 |  | hangs |"
    )
    assert report.failures([Result(workload(), outcomes)]) == "- small, quick: hung: ended after 60 s\n"


def test_json_holds_every_sample() -> None:
    text = json.dumps(report.as_json([result(AtLeastTimes(6, "slow"))], {"cpus": 2}))
    (row,) = json.loads(text)["workloads"]
    assert [sample["value"] for sample in row["contenders"][0]["samples"]] == [600.0, 700.0, 650.0]
    assert row["contenders"][1]["times_better"] == 6.5
    assert row["targets"][0]["met"] is True


def test_a_block_of_a_page_is_replaced_and_the_rest_stays() -> None:
    page = "a\n<!-- benchmark: queue -->\nold\n<!-- end -->\nb\n<!-- benchmark: lock -->\n<!-- end -->\n"
    renewed = report.replace_block(page, "queue", "new\n")
    assert renewed == page.replace("old", "\nnew\n")
    assert report.replace_block(renewed, "queue", "new\n") == renewed
    with pytest.raises(ValueError, match="pool"):
        report.replace_block(page, "pool", "new")


def test_a_plot_is_well_formed_and_longer_is_better() -> None:
    for better, order in (("higher", ["mpkit", "quick", "slow"]), ("lower", ["slow", "quick", "mpkit"])):
        root = ET.fromstring(plot.bars("Queues <1>", [result(better=better)]))  # type: ignore[arg-type]
        names = [
            element.text for element in root.findall(".//{*}text") if element.get("text-anchor") == "end"
        ]
        widths = [float(element.get("width", "")) for element in root.findall(".//{*}rect")]
        assert names == order
        assert widths == sorted(widths, reverse=True)


def test_a_plot_leaves_out_a_result_in_which_a_contender_needs_nothing() -> None:
    idle = Result(
        workload(better="lower", unit="% of a core"),
        (outcome("mpkit", 0.07), outcome("slow", 0.0), outcome("quick", 0.01)),
    )
    drawn = ET.fromstring(plot.bars("Idle", [idle, result()]))
    assert len(drawn.findall(".//{*}rect")) == 3
    assert not [text for text in drawn.findall(".//{*}text") if "%" in (text.text or "")]


# -- what is measured ----------------------------------------------------------------------------------------


def test_every_workload_is_complete() -> None:
    known = {*peers.DISTRIBUTIONS, "mpkit share", "memory copy", "stdlib"}
    for workload in WORKLOADS.values():
        assert workload.area in AREAS
        assert workload.contenders[0] == "mpkit"
        assert set(workload.contenders) <= known
        assert not workload.baseline or workload.baseline in workload.contenders
        for target in workload.targets:
            assert target.of in workload.contenders
            if isinstance(target, AtLeastTimes):
                assert target.than == BEST or target.than in workload.contenders


def test_each_area_has_a_heading() -> None:
    assert {workload.area for workload in WORKLOADS.values()} == set(AREAS) == set(report.TITLES)


def test_scaled_work_is_never_nothing() -> None:
    assert Scale(0.1).count(1000) == 100
    assert Scale(0.001).count(10) == 1
    assert Scale(0.1).seconds(20.0, at_least=3.0) == 3.0


def test_the_longest_idle_spell_counts_only_while_tasks_wait() -> None:
    # Worker 1 is idle from 2 to 3 while a task of worker 2 has not begun. Idle time after the last task has
    # begun (at 5) does not count.
    done = [(1, 0.0, 2.0), (1, 3.0, 4.0), (2, 0.0, 5.0), (2, 5.0, 9.0)]
    assert _longest_idle(done) == 1.0
    assert _longest_idle(done[:1]) == 0.0


# -- the command line ----------------------------------------------------------------------------------------


def test_areas_and_names_choose_workloads() -> None:
    assert {workload.area for workload in cli.chosen_workloads(["queue", "lock"], None)} == {"queue", "lock"}
    assert len(cli.chosen_workloads("all", None)) == len(WORKLOADS)
    assert [workload.name for workload in cli.chosen_workloads("all", ["submit"])] == ["submit"]


def test_peers_choose_contenders() -> None:
    row = WORKLOADS["array-10mb"]
    assert cli.chosen_contenders(row, None) == list(row.contenders)
    assert cli.chosen_contenders(row, []) == ["mpkit", "memory copy"]
    assert cli.chosen_contenders(row, cli.wanted_peers("dejaq, faster-fifo")) == [
        "mpkit",
        "faster-fifo",
        "dejaq",
        "memory copy",
    ]
    assert cli.wanted_peers("none") == []
    assert cli.wanted_peers(None) is None


@pytest.mark.parametrize("arguments", [["--only", "nothing"], ["--peers", "nobody"]])
def test_an_unknown_name_is_refused_with_a_list_of_the_known_ones(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    assert "there are" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["tables"], ["--repeats", "0"], ["--repeats", "x"]])
def test_invalid_arguments_are_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        cli.main(arguments)
    assert info.value.code == 2
    assert "usage" in capsys.readouterr().err


def test_the_list_names_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in WORKLOADS)


def test_the_page_of_the_documentation_has_a_block_for_each_area() -> None:
    page = cli.PAGE.read_text(encoding="utf-8")
    for area in (*AREAS, "conditions"):
        report.replace_block(page, area, "")


def test_the_conditions_name_the_size_unless_it_is_a_full_run() -> None:
    conditions = {"system": "Linux", "cpus": 2, "python": "CPython 3.13", "rounds": 3, "versions": {}}
    assert "interleaved rounds;" in report.conditions_line({**conditions, "size": 1.0})
    assert "interleaved rounds, size 0.1;" in report.conditions_line({**conditions, "size": 0.1})


# -- figures that other pages repeat -------------------------------------------------------------------------

ROUGHLY = 0.12
#: The words with which README and limits.md compare the speed of a lock with that of the standard library.
PARTS = {"a seventh": 7, "an eighth": 8, "a ninth": 9, "a tenth": 10}
NUMBERS = {"seven": 7, "eight": 8, "nine": 9, "ten": 10}


def words(page: str) -> str:
    return " ".join((cli.DOCUMENTS.parent / page).read_text(encoding="utf-8").split())


def measured(title: str) -> float:
    """How many times as fast as the standard library mpkit is, according to the table in performance.md."""
    row = re.compile(rf"^\| {re.escape(title)} \([^|]*\) \| [^|]* \| [^|]*\(([\d.]+)x\) \|", re.MULTILINE)
    found = row.search(cli.PAGE.read_text(encoding="utf-8"))
    assert found, title
    return float(found[1])


def figures(pattern: str, page: str) -> tuple[str, ...]:
    found = re.search(pattern, words(page))
    assert found, f"{page} has no such sentence any more: {pattern}"
    return found.groups()


def test_the_readme_agrees_with_the_measurements() -> None:
    lowest, highest = figures(r"queues are ([\d.]+) to ([\d.]+) times", "README.md")
    for way in ("1 putter to 1 getter", "4 to 4", "1 to 4", "4 to 1"):
        ratio = measured(f"small items, {way}")
        assert float(lowest) * (1 - ROUGHLY) <= ratio <= float(highest) * (1 + ROUGHLY), way
    (calls,) = figures(r"single pool calls about ([\d.]+) times as fast", "README.md")
    assert float(calls) == pytest.approx(measured("one call at a time"), rel=ROUGHLY)
    part, contended = figures(
        r"Locks are slower: about (an? \w+) of the speed \(([\d.]+) of it where four processes", "README.md"
    )
    assert 1 / PARTS[part] == pytest.approx(measured("acquire and release, one process"), rel=ROUGHLY)
    four = measured("acquire and release, four processes at once")
    assert float(contended) == pytest.approx(four, rel=ROUGHLY)


def test_the_page_on_limits_agrees_with_the_measurements() -> None:
    (times,) = figures(
        r"`multiprocessing\.Lock`, which has about (\w+) times the speed", "docs/explanation/limits.md"
    )
    assert 1 / NUMBERS[times] == pytest.approx(measured("acquire and release, one process"), rel=ROUGHLY)
