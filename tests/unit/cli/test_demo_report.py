"""The report of the demo, and its progress line."""

from __future__ import annotations

import errno
import io
import os
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from mpkit.cli.demo import report, store
from mpkit.cli.demo.alone import Spent, index_alone
from mpkit.cli.demo.index import Outcome
from mpkit.cli.demo.measure import FileFacts
from mpkit.cli.demo.observer import Usage
from mpkit.cli.demo.progress import Amount, ProgressLine

FILES = [
    FileFacts("a.py", 1000, 10, 50, 5, 1, ("os", "sys"), "aa"),
    FileFacts("b.py", 3000, 30, 150, 15, 3, ("sys",), "bb"),
    FileFacts("c.py", 100, 2, error="SyntaxError: invalid syntax"),
]
OUTCOME = Outcome(
    seconds=2.0,
    rows=3,
    counted=Amount(3, 4100),
    workers=2,
    tasks=Counter({11: 1, 12: 2}),
    used={11: Usage(0.5, 1 << 20), 10: Usage(0.1, 1 << 19)},
    writer_pid=10,
)


@pytest.fixture
def index(tmp_path: Path) -> Iterator[store.Index]:
    path = str(tmp_path / "index.sqlite3")
    store.create(path)
    with store.writing(path) as database:
        store.add(database, FILES)
    with store.Index(path) as index:
        yield index


def test_the_summary_tells_everything(index: store.Index) -> None:
    text = "\n".join(report.summary("/lib", "/x.sqlite3", index, OUTCOME))
    assert "Indexed /lib" in text
    assert "2.00 s with 2 workers (2 files/s); the index is /x.sqlite3" in text
    assert "3 files, 4.0 KiB, 42 lines, 200 tokens, 20 functions, 4 classes" in text
    assert "the shared counters, the writer and the database agree" in text
    assert "c.py: SyntaxError: invalid syntax" in text


def test_the_largest_and_the_most_imported_come_first(index: store.Index) -> None:
    lines = report.summary("/lib", "/x", index, OUTCOME)
    largest = lines.index("Largest modules")
    assert [line.split()[0] for line in lines[largest + 2 : largest + 5]] == ["b.py", "a.py", "c.py"]
    imported = lines.index("Most imported modules")
    assert [line.split() for line in lines[imported + 2 : imported + 4]] == [["sys", "2"], ["os", "1"]]


def test_each_process_has_its_line(index: store.Index) -> None:
    lines = report.summary("/lib", "/x", index, OUTCOME)
    rows = [line.split() for line in lines[lines.index("What each process did") + 2 :]]
    assert rows == [
        ["worker", "12", "2", "files", "not", "seen", "not", "seen"],
        ["worker", "11", "1", "files", "0.50", "s", "1.0", "MiB"],
        ["writer", "10", "3", "rows", "0.10", "s", "512.0", "KiB"],
    ]


def test_a_disagreement_is_not_hidden(index: store.Index) -> None:
    wrong = Outcome(2.0, 2, Amount(4, 5), 1, Counter({11: 3}), {}, 10)
    text = "\n".join(report.summary("/lib", "/x", index, wrong))
    assert "NOT AGREED: the counters say 4 files and 5 bytes, the writer says 2 rows" in text


@pytest.mark.parametrize("identical, word", [(True, "identical"), (False, "DIFFERENT")])
def test_the_comparison_tells_both_times(identical: bool, word: str) -> None:
    text = "\n".join(report.comparison(OUTCOME, Spent(5.0, 4.5), identical=identical))
    assert "5.00 s (4.50 s of CPU time), against 2.00 s (0.60 s) with 2 workers and the writer" in text
    assert "the pool was 2.50 times as fast" in text
    assert f"both results are {word}" in text


def test_one_process_builds_the_same_index(tmp_path: Path) -> None:
    root = tmp_path / "lib"
    root.mkdir()
    for number in range(250):
        (root / f"m{number}.py").write_text(f"import m{number}\n")
    path = str(tmp_path / "index.sqlite3")
    store.create(path)
    assert index_alone(str(root), path, line=ProgressLine(shown=False)).seconds > 0
    with store.Index(path) as index:
        assert index.totals().files == 250


def test_the_progress_line_replaces_itself() -> None:
    out = io.StringIO()
    line = ProgressLine(out)
    line.show("indexing", Amount(1234, 2048), ", 3 rows waiting")
    line.show("indexing", Amount(1, 0))
    line.clear()
    first, second, blank, end = out.getvalue().split("\r")[1:]
    assert first.startswith("indexing: 1,234 files, 2.0 KiB, ")
    assert first.endswith(" files/s, 3 rows waiting")
    assert len(second) == len(first)
    assert len(blank) >= len(second.rstrip())
    assert blank.strip() == end == ""


def test_without_a_terminal_there_is_no_progress_line(capsys: pytest.CaptureFixture[str]) -> None:
    line = ProgressLine()
    line.show("indexing", Amount(1, 1))
    line.clear()
    assert capsys.readouterr() == ("", "")


def test_names_of_files_do_nothing_to_the_terminal(tmp_path: Path) -> None:
    path = str(tmp_path / "index.sqlite3")
    store.create(path)
    with store.writing(path) as database:
        store.add(database, [FileFacts("\x1b[31m.py", 1, imports=("\x9b",), error="in \x07")])
    with store.Index(path) as index:
        text = "\n".join(report.summary("/\x1b", "/\x1b", index, OUTCOME))
    assert all(character.isprintable() or character == "\n" for character in text)
    assert r"  \x1b[31m.py: in \x07" in text


class Unplugged(io.StringIO):
    """A terminal that does not exist any more."""

    def write(self, _text: str, /) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_the_work_goes_on_without_the_terminal_of_the_progress_line() -> None:
    line = ProgressLine(Unplugged())
    line.show("indexing", Amount(1, 1))
    line.show("indexing", Amount(2, 2))
    line.clear()


def test_there_need_not_be_a_standard_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    ProgressLine().show("indexing", Amount(1, 1))
