"""The database of the demo."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from mpkit.cli.demo import store
from mpkit.cli.demo.measure import FileFacts

SMALL = FileFacts("a.py", 10, 1, 5, 1, 0, ("os", "sys"), "aa")
LARGE = FileFacts("pkg/b.py", 30, 3, 15, 2, 1, ("sys",), "bb")
BAD = FileFacts("c.py", 20, 2, error="SyntaxError: bad")


@pytest.fixture
def database(tmp_path: Path) -> str:
    path = str(tmp_path / "index.sqlite3")
    store.create(path)
    return path


def fill(database: str, *batches: list[FileFacts]) -> None:
    with store.writing(database) as connection:
        for batch in batches:
            assert store.add(connection, batch) == len(batch)


def test_answers_come_from_what_was_added(database: str) -> None:
    fill(database, [SMALL, BAD], [LARGE], [])
    with store.Index(database) as index:
        assert index.totals() == store.Totals(
            files=3, size_bytes=60, lines=6, tokens=20, functions=3, classes=1, with_error=1
        )
        assert index.largest(2) == [("pkg/b.py", 30, 3, 15, 2), ("c.py", 20, 2, 0, 0)]
        assert index.most_imported(5) == [("sys", 2), ("os", 1)]
        assert index.errors(5) == [("c.py", "SyntaxError: bad")]


def test_an_empty_index_is_an_index(database: str) -> None:
    with store.Index(database) as index:
        assert index.totals() == store.Totals(0, 0, 0, 0, 0, 0, 0)
        assert index.largest(10) == []


def test_the_fingerprint_does_not_depend_on_the_order(database: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.sqlite3")
    store.create(other)
    fill(database, [SMALL], [LARGE, BAD])
    fill(other, [BAD, LARGE, SMALL])
    with store.Index(database) as index, store.Index(other) as same:
        assert index.fingerprint() == same.fingerprint()


@pytest.mark.parametrize(
    "changed", [SMALL._replace(tokens=6), SMALL._replace(imports=("os",)), SMALL._replace(error="x")]
)
def test_the_fingerprint_covers_every_fact(database: str, tmp_path: Path, changed: FileFacts) -> None:
    other = str(tmp_path / "other.sqlite3")
    store.create(other)
    fill(database, [SMALL])
    fill(other, [changed])
    with store.Index(database) as index, store.Index(other) as different:
        assert index.fingerprint() != different.fingerprint()


def test_a_batch_goes_in_whole_or_not_at_all(database: str) -> None:
    with store.writing(database) as connection, pytest.raises(sqlite3.IntegrityError):
        store.add(connection, [LARGE, SMALL, SMALL])
    with store.Index(database) as index:
        assert index.totals().files == 0


def test_an_earlier_index_is_replaced(database: str) -> None:
    fill(database, [SMALL])
    store.create(database)
    with store.Index(database) as index:
        assert index.totals().files == 0


@pytest.mark.parametrize("content", [b"", b"not a database", b"x" * 5000])
def test_a_file_of_somebody_else_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "precious"
    path.write_bytes(content)
    with pytest.raises(store.ForeignFileError, match="left alone; choose another --database"):
        store.create(str(path))
    assert path.read_bytes() == content


def test_a_database_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "other.sqlite3"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE precious (x)")
    connection.close()
    with pytest.raises(store.ForeignFileError):
        store.create(str(path))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")
def test_a_named_pipe_in_the_way_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    with pytest.raises(store.ForeignFileError):
        store.create(str(path))
    assert path.is_fifo()


def test_a_folder_in_the_way_is_refused(tmp_path: Path) -> None:
    with pytest.raises(store.ForeignFileError):
        store.create(str(tmp_path))


def test_a_file_named_with_a_question_mark_is_no_query(tmp_path: Path) -> None:
    path = str(tmp_path / "what?mode=rw#x.sqlite3")
    store.create(path)
    with store.Index(path) as index:
        assert index.totals().files == 0
