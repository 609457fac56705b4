"""Each example is short, and prints exactly what `examples/expected` says it prints."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, run_python

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
EXPECTED = ROOT / "examples" / "expected"
#: A longer example would show too much at once.
MOST_LINES = 40


def name_of(example: Path) -> str:
    return example.stem


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_an_example_prints_what_it_should(example: Path) -> None:
    # Warnings are errors, in the children as well, except for one that Python 3.15 itself gives whenever
    # multiprocessing's own main module has to show a traceback.
    ended = run_python("-W", "error", "-W", "ignore:Module globals is missing:DeprecationWarning", example)
    assert ended.stdout == (EXPECTED / f"{example.stem}.txt").read_text(encoding="utf-8")
    # A process that fails prints its traceback. Only the last line of each is the same in every run.
    last_lines = [line for line in ended.stderr.splitlines() if re.match(r"\w+(\.\w+)*(Error|Warning)", line)]
    expected = EXPECTED / f"{example.stem}.err"
    assert last_lines == (expected.read_text(encoding="utf-8").splitlines() if expected.exists() else [])
    assert bool(ended.stderr) == expected.exists(), ended.stderr


@pytest.mark.parametrize("example", EXAMPLES, ids=name_of)
def test_an_example_is_short(example: Path) -> None:
    assert len(example.read_text(encoding="utf-8").splitlines()) < MOST_LINES


def test_every_example_has_its_output_and_every_output_its_example() -> None:
    assert EXAMPLES
    assert [example.stem for example in EXAMPLES] == sorted(output.stem for output in EXPECTED.glob("*.txt"))
