"""The programs in the README and in the tutorial print what is written there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, run_python

BLOCK = re.compile(r"^```python\n(.*?)^```\n(.*?)(?=^```python|\Z)", re.MULTILINE | re.DOTALL)


def programs(page: str) -> list[tuple[str, str]]:
    """Each whole program of a page, with the text that follows it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [(code, after) for code, after in BLOCK.findall(text) if "__main__" in code]


def expected(after: str) -> str:
    """The output as the page tells it: a ``text`` block, or what is between backticks in 'It prints … .'."""
    if block := re.match(r"\s*```text\n(.*?)```", after, re.DOTALL):
        return block[1]
    sentence = re.match(r"\s*It prints ((?:`[^`]*`|,| and|\s)*)", after)
    assert sentence, f"no output is given for this program; after it comes: {after[:80]!r}"
    return "".join(line + "\n" for line in re.findall(r"`([^`]*)`", sentence[1]))


@pytest.mark.parametrize("page", ["README.md", "docs/tutorial/first-steps.md"])
def test_programs_print_what_the_page_says(page: str, tmp_path: Path) -> None:
    found = programs(page)
    assert found
    for number, (code, after) in enumerate(found):
        program = tmp_path / f"program_{number}.py"
        program.write_text(code, encoding="utf-8")
        done = run_python(program)
        # Pids differ; how much memory a dead worker had is told only if a sample was taken in time.
        told = re.sub(r"process \d+", "process 4711", done.stdout)
        told = re.sub(r"; it last used [\d.]+ MiB of memory", "", told)
        assert told == expected(after), f"{code}\n{done.stderr}"
        assert done.stderr == ""
