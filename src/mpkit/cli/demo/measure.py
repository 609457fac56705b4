"""Measures one Python file. The results depend on the file only, and not on the process."""

from __future__ import annotations

import ast
import hashlib
import io
import os
import stat
import tokenize
import warnings
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

from mpkit._platform.files.descriptors import NO_TERMINAL, NO_WAIT

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Directories that are not part of the library: what pip has installed into it, and what the interpreter has
#: compiled.
_SKIPPED = frozenset({"site-packages", "dist-packages", "__pycache__"})


class FileFacts(NamedTuple):
    """One Python file, measured.

    Attributes:
        path: its path below the root of the index, with forward slashes.
        size_bytes: its length.
        lines: the number of lines; a last line without a line break counts.
        tokens: the number of lexical tokens; if there is an error, of those before it.
        functions: the number of function definitions, including methods and async functions.
        classes: the number of class definitions.
        imports: the names of the modules that it imports, absolute, sorted, and each once.
        sha256: the hash of its bytes, as hexadecimal digits.
        error: why it could not be measured in full, or None.
    """

    path: str
    size_bytes: int = 0
    lines: int = 0
    tokens: int = 0
    functions: int = 0
    classes: int = 0
    imports: tuple[str, ...] = ()
    sha256: str = ""
    error: str | None = None


def python_files(root: str) -> Iterator[str]:
    """Yield the path of each ``.py`` file below `root`, with forward slashes, in a fixed order."""
    for directory, subdirectories, files in os.walk(root):
        subdirectories[:] = sorted(name for name in subdirectories if name not in _SKIPPED)
        for name in sorted(files):
            if name.endswith(".py"):
                yield Path(directory, name).relative_to(root).as_posix()


def measure(root: str, path: str) -> FileFacts:
    """Read, parse and measure the file at `path` below `root`. Errors are put into `FileFacts.error`."""
    name = _storable(path)
    try:
        source = _contents(Path(root, path))
    except OSError as error:
        # A dangling link, say, or a file that this user may not read.
        return FileFacts(name, error=_in_one_line(error))
    if source is None:
        return FileFacts(name, error="not a regular file")
    tokens, token_error = _count_tokens(source)
    functions, classes, imports, syntax_error = _read_structure(source, name, _package_of(root, path))
    return FileFacts(
        path=name,
        size_bytes=len(source),
        lines=source.count(b"\n") + (not source.endswith(b"\n") and bool(source)),
        tokens=tokens,
        functions=functions,
        classes=classes,
        imports=imports,
        sha256=hashlib.sha256(source).hexdigest(),
        error=syntax_error or token_error,
    )


def _contents(path: Path) -> bytes | None:
    """The bytes of a regular file; None for a pipe, a device and the like, which might have no end."""
    # Checked before opening, because opening some devices has side effects; and again afterwards, because the
    # file may have been replaced meanwhile.
    if not stat.S_ISREG(path.stat().st_mode):
        return None
    with open(path, "rb", opener=_open_at_once) as file:
        return file.read() if stat.S_ISREG(os.fstat(file.fileno()).st_mode) else None


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | NO_WAIT | NO_TERMINAL)


def _count_tokens(source: bytes) -> tuple[int, str | None]:
    count = 0
    try:
        for _ in tokenize.tokenize(io.BytesIO(source).readline):
            count += 1
    except (SyntaxError, tokenize.TokenError, UnicodeDecodeError) as error:
        return count, _in_one_line(error)
    return count, None


def _package_of(root: str, path: str) -> tuple[str, ...]:
    """The names of the packages that a file belongs to; the root is one of them if it is a package."""
    outer = (Path(root).name,) if Path(root, "__init__.py").exists() else ()
    return (*outer, *PurePosixPath(path).parent.parts)


def _read_structure(
    source: bytes, name: str, package: tuple[str, ...]
) -> tuple[int, int, tuple[str, ...], str | None]:
    try:
        with warnings.catch_warnings():
            # Invalid escape sequences in the files that are indexed are of no interest here.
            warnings.simplefilter("ignore")
            module = ast.parse(source, filename=name)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        # ValueError: a null byte; the other two: nested too deeply for the parser.
        return 0, 0, (), _in_one_line(error)
    functions = classes = 0
    imports: set[str] = set()
    for node in ast.walk(module):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            functions += 1
        elif isinstance(node, ast.ClassDef):
            classes += 1
        elif isinstance(node, ast.Import):
            imports.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            imports.add(_resolved(node, package))
    return functions, classes, tuple(sorted(imports)), None


def _resolved(node: ast.ImportFrom, package: tuple[str, ...]) -> str:
    """The absolute name of the module in ``from ... import``: each dot but the first goes one package up."""
    if not node.level:
        return node.module or ""
    start = package[: max(len(package) - node.level + 1, 0)]
    return ".".join((*start, *((node.module,) if node.module else ()))) or "."


def _in_one_line(error: BaseException) -> str:
    text = str(error).splitlines()
    return _storable(f"{type(error).__name__}: {text[0]}" if text else type(error).__name__)


def _storable(text: str) -> str:
    """Text that can be stored in a database: bytes of file names that are no text become escapes."""
    return text.encode("utf-8", "backslashreplace").decode()
