"""What the demo measures in one file."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
from pathlib import Path

import pytest

from mpkit.cli.demo.measure import FileFacts, measure, python_files

SOURCE = b'''"""A module."""
import os, sys
import os.path
from collections import OrderedDict


class Shape:
    def area(self):
        return 0


async def wait():
    from json import loads

    def inner(): ...
'''


def write(root: Path, path: str, source: bytes) -> FileFacts:
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(source)
    return measure(str(root), path)


def test_counts_everything_once(tmp_path: Path) -> None:
    facts = write(tmp_path, "shapes.py", SOURCE)
    assert facts == FileFacts(
        path="shapes.py",
        size_bytes=len(SOURCE),
        lines=15,
        tokens=facts.tokens,
        functions=3,
        classes=1,
        imports=("collections", "json", "os", "os.path", "sys"),
        sha256=hashlib.sha256(SOURCE).hexdigest(),
        error=None,
    )
    assert 60 < facts.tokens < 80  # differs by a few between versions of Python


@pytest.mark.parametrize("source, lines", [(b"", 0), (b"x = 1", 1), (b"x = 1\n", 1), (b"x = 1\ny = 2", 2)])
def test_a_last_line_without_a_line_break_counts(tmp_path: Path, source: bytes, lines: int) -> None:
    assert write(tmp_path, "a.py", source).lines == lines


@pytest.mark.parametrize(
    "statement, module",
    [
        (b"from . import c", "pkg.sub"),
        (b"from .c import d", "pkg.sub.c"),
        (b"from .. import c", "pkg"),
        (b"from ..c import d", "pkg.c"),
        (b"from ...... import c", "."),
    ],
)
def test_relative_imports_are_resolved_against_the_package(
    tmp_path: Path, statement: bytes, module: str
) -> None:
    assert write(tmp_path, "pkg/sub/mod.py", statement).imports == (module,)


def test_a_root_that_is_a_package_counts_as_one(tmp_path: Path) -> None:
    root = tmp_path / "pkg"
    write(root, "__init__.py", b"")
    assert write(root, "mod.py", b"from . import a").imports == ("pkg",)


@pytest.mark.parametrize(
    "source, error",
    [
        (b"def broken(:\n", "SyntaxError"),
        (b"x = (\n", "SyntaxError"),
        (b"# coding: no-such-codec\n", "SyntaxError"),
        (b"x = '\xff'\n", "SyntaxError"),
        (b"x = 1\0\n", "Error"),
        (b"if 1:\n        a\n    b\n", "IndentationError"),
    ],
)
def test_a_file_that_cannot_be_parsed_is_recorded_not_dropped(
    tmp_path: Path, source: bytes, error: str
) -> None:
    facts = write(tmp_path, "bad.py", source)
    assert facts.error is not None
    assert error in facts.error
    assert "\n" not in facts.error
    assert facts.size_bytes == len(source)
    assert facts.sha256


def test_a_file_that_cannot_be_read_is_recorded(tmp_path: Path) -> None:
    (tmp_path / "dangling.py").symlink_to(tmp_path / "nowhere.py")
    facts = measure(str(tmp_path), "dangling.py")
    assert facts.error is not None
    assert facts.error.startswith("FileNotFoundError")


needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="named pipes are POSIX's")


@needs_pipes
def test_a_named_pipe_is_recorded_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.py")
    assert list(python_files(str(tmp_path))) == ["pipe.py"]
    assert measure(str(tmp_path), "pipe.py") == FileFacts("pipe.py", error="not a regular file")


@needs_pipes
def test_a_file_that_becomes_a_named_pipe_after_the_look_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file.py"
    path.touch()
    look = Path.stat

    def look_and_replace(self: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        seen = look(self, follow_symlinks=follow_symlinks)
        if self == path:
            os.unlink(path)
            os.mkfifo(path)
        return seen

    monkeypatch.setattr(Path, "stat", look_and_replace)
    assert measure(str(tmp_path), "file.py").error == "not a regular file"


@pytest.mark.skipif(os.name != "posix", reason="devices are files on POSIX")
def test_a_device_is_recorded_not_read(tmp_path: Path) -> None:
    (tmp_path / "device.py").symlink_to(os.devnull)
    assert measure(str(tmp_path), "device.py").error == "not a regular file"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems want file names to be text")
def test_a_name_that_is_no_text_can_be_stored(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.py")
    facts = write(tmp_path, name, b"x = 1\n")
    assert facts.path.encode() == rb"caf\udce9.py"
    assert facts.error is None


def test_warnings_of_a_file_are_not_ours(tmp_path: Path) -> None:
    assert write(tmp_path, "a.py", b"x = '\\d'\nif x is 'y': pass\n").error is None


def test_files_are_found_in_a_fixed_order_without_what_pip_installed(tmp_path: Path) -> None:
    for path in ("b.py", "a/z.py", "a/y.py", "site-packages/c.py", "__pycache__/b.py", "b.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert list(python_files(str(tmp_path))) == ["b.py", "a/y.py", "a/z.py"]


def test_files_are_listed_lazily(tmp_path: Path) -> None:
    (tmp_path / "a.py").touch()
    (tmp_path / "later").mkdir()
    files = python_files(str(tmp_path))
    assert next(files) == "a.py"
    (tmp_path / "later" / "b.py").touch()
    assert list(files) == ["later/b.py"]


def test_facts_travel(tmp_path: Path) -> None:
    facts = write(tmp_path, "shapes.py", SOURCE)
    assert pickle.loads(pickle.dumps(facts)) == facts
