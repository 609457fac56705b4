"""The database of the demo: its tables, and how they are written and read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from typing_extensions import Self

from mpkit.cli.demo.measure import FileFacts

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

#: "MPKi", stored in the header of the file (SQLite's application_id): so the demo recognises its own
#: databases, and never overwrites another one.
_APPLICATION_ID = 0x4D504B69

_SCHEMA = f"""
PRAGMA application_id = {_APPLICATION_ID};
CREATE TABLE file (
    path TEXT PRIMARY KEY, size_bytes INTEGER, lines INTEGER, tokens INTEGER, functions INTEGER,
    classes INTEGER, sha256 TEXT, error TEXT
) WITHOUT ROWID;
CREATE TABLE import (path TEXT, module TEXT, PRIMARY KEY (path, module)) WITHOUT ROWID;
"""


class Totals(NamedTuple):
    """Sums over all files of an index."""

    files: int
    size_bytes: int
    lines: int
    tokens: int
    functions: int
    classes: int
    with_error: int


class ForeignFileError(Exception):
    """There is a file at the place of the database which this demo has not written."""


def create(path: str) -> None:
    """Create an empty index at `path`; an earlier one is replaced.

    Raises:
        ForeignFileError: there is something else at `path`; it is left alone.
        sqlite3.Error, OSError: the file cannot be written.
    """
    if os.path.lexists(path):
        if not _is_index(path):
            raise ForeignFileError(
                "this is not a database of the demo, so it is left alone; choose another --database"
            )
        remove(path)
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.executescript(_SCHEMA)


def remove(path: str) -> None:
    """Remove an index, and the journal that SQLite may have left beside it."""
    for suffix in ("", "-journal"):
        Path(path + suffix).unlink(missing_ok=True)


@contextlib.contextmanager
def writing(path: str) -> Generator[sqlite3.Connection]:
    """A block with a connection for `add`; after the block, the file is complete."""
    with contextlib.closing(sqlite3.connect(path)) as database:
        yield database


def add(database: sqlite3.Connection, batch: Iterable[FileFacts]) -> int:
    """Write the facts of some files in one transaction, and return their number."""
    batch = list(batch)
    with database:
        database.executemany(
            "INSERT INTO file VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            [
                (f.path, f.size_bytes, f.lines, f.tokens, f.functions, f.classes, f.sha256, f.error)
                for f in batch
            ],
        )
        database.executemany(
            "INSERT INTO import VALUES (?, ?)", [(f.path, module) for f in batch for module in f.imports]
        )
    return len(batch)


class Index:
    """A finished index, opened for reading.

    Args:
        path: the database.
    """

    def __init__(self, path: str) -> None:
        self._database = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def totals(self) -> Totals:
        """Sums over all files."""
        row = self._database.execute(
            "SELECT count(*), total(size_bytes), total(lines), total(tokens), total(functions),"
            " total(classes), count(error) FROM file"
        ).fetchone()
        return Totals(*(int(value) for value in row))

    def largest(self, count: int) -> list[tuple[str, int, int, int, int]]:
        """The largest files: path, bytes, lines, tokens, functions."""
        return self._database.execute(
            "SELECT path, size_bytes, lines, tokens, functions FROM file"
            " ORDER BY size_bytes DESC, path LIMIT ?",
            (count,),
        ).fetchall()

    def most_imported(self, count: int) -> list[tuple[str, int]]:
        """The modules that most files import: name, number of files."""
        return self._database.execute(
            "SELECT module, count(*) AS files FROM import"
            " GROUP BY module ORDER BY files DESC, module LIMIT ?",
            (count,),
        ).fetchall()

    def errors(self, count: int) -> list[tuple[str, str]]:
        """Files that could not be measured in full: path, reason."""
        return self._database.execute(
            "SELECT path, error FROM file WHERE error IS NOT NULL ORDER BY path LIMIT ?", (count,)
        ).fetchall()

    def fingerprint(self) -> str:
        """A hash over all rows of all tables: the same for two indexes if and only if their contents are."""
        digest = hashlib.sha256()
        for query in ("SELECT * FROM file ORDER BY path", "SELECT * FROM import ORDER BY path, module"):
            for row in self._database.execute(query):
                digest.update(repr(row).encode())
        return digest.hexdigest()


def _is_index(path: str) -> bool:
    # SQLite would open a named pipe, and wait until something is written into it.
    if not os.path.isfile(path):
        return False
    try:
        with contextlib.closing(
            sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True)
        ) as database:
            (found,) = database.execute("PRAGMA application_id").fetchone()
    except sqlite3.Error:
        return False
    return bool(found == _APPLICATION_ID)
