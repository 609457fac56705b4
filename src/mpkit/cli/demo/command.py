"""The command `demo`."""

from __future__ import annotations

import os
import sqlite3
import sysconfig
import tempfile
from typing import TYPE_CHECKING

from mpkit.cli import _arguments, _output, _text
from mpkit.cli.demo import alone, index, report, store
from mpkit.cli.demo.progress import ProgressLine
from mpkit.errors import MpkitError

if TYPE_CHECKING:
    import argparse

_DATABASE = "mpkit-demo.sqlite3"


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "demo",
        help="index the sources of Python's standard library, with every part of mpkit",
        description=(
            "Index Python files with a TaskPool, a BoundedQueue, a WorkerProcess and LockedCounters into"
            " a SQLite database, then do the same in one process and compare. Ctrl-C stops it immediately and"
            " leaves a readable database."
        ),
    )
    parser.add_argument(
        "path",
        nargs="?",
        metavar="PATH",
        default=sysconfig.get_path("stdlib"),
        help="the directory to index; by default this interpreter's standard library (%(default)s)",
    )
    parser.add_argument(
        "--processes",
        type=_arguments.positive,
        metavar="N",
        help="workers; by default one for each usable CPU",
    )
    parser.add_argument(
        "--database",
        default=_DATABASE,
        metavar="FILE",
        help="the index to write; an earlier one is replaced (%(default)s)",
    )
    parser.add_argument(
        "--no-compare", dest="compare", action="store_false", help="do not repeat the work in one process"
    )
    parser.add_argument(
        "--no-progress",
        dest="progress",
        action="store_false",
        help="show no progress line (without a terminal there is none anyway)",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Index, report and compare; returns 0 if all went well, else 1."""
    root, database = os.path.abspath(options.path), os.path.abspath(options.database)
    if not os.path.isdir(root):
        return _failed(f"{root} is not a directory")
    line = ProgressLine(shown=options.progress)
    try:
        store.create(database)
        try:
            outcome = index.index(root, database, processes=options.processes, line=line)
        except KeyboardInterrupt:
            line.clear()
            _output.complain(_text.visible(f"Interrupted: {_rows(database)} files are in {database}"))
            raise
        with store.Index(database) as result:
            _output.show("\n".join(report.summary(root, database, result, outcome)), flush=True)
            return _compare(root, result, outcome, line) if options.compare else 0
    except MpkitError:
        # Before the next clause, because some are OSErrors as well, but none of them concerns the database.
        raise
    except (store.ForeignFileError, sqlite3.Error, OSError) as error:
        return _failed(f"{database}: {error}")


def _compare(root: str, result: store.Index, outcome: index.Outcome, line: ProgressLine) -> int:
    with tempfile.TemporaryDirectory(prefix="mpkit-demo-") as directory:
        other = os.path.join(directory, _DATABASE)
        store.create(other)
        spent = alone.index_alone(root, other, line=line)
        with store.Index(other) as by_one:
            identical = by_one.fingerprint() == result.fingerprint()
    _output.show("\n".join(report.comparison(outcome, spent, identical=identical)))
    return 0 if identical else 1


def _rows(database: str) -> int:
    with store.Index(database) as result:
        return result.totals().files


def _failed(reason: str) -> int:
    _output.complain(_text.visible(f"mpkit demo: {reason}"))
    return 1
