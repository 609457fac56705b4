"""Every Python block in the README and the documentation is a program that prints what the page says."""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import pytest

import mpkit.introspect
import mpkit.pool
import mpkit.process
import mpkit.queue
import mpkit.sync
from tests.helpers.processes import ROOT, run_python
from tests.helpers.waiting import PATIENCE

BLOCK = re.compile(
    r'^```python(?: title="(?P<title>[^"]+)")?\n(?P<code>.*?)^```\n(?P<after>.*?)(?=^```python|\Z)',
    re.MULTILINE | re.DOTALL,
)
PAGES = sorted(
    str(page.relative_to(ROOT))
    for page in (ROOT / "README.md", *(ROOT / "docs").rglob("*.md"))
    if BLOCK.search(page.read_text(encoding="utf-8"))
)
#: Packages that the programs may import, but that need not be installed to run the tests.
OPTIONAL = ("numpy", "cloudpickle")


class Program(NamedTuple):
    name: str
    code: str
    after: str


def programs(page: str) -> list[Program]:
    """Each Python block of a page, with the text that follows it."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return [
        Program(found["title"] or f"program_{number}.py", found["code"], found["after"])
        for number, found in enumerate(BLOCK.finditer(text))
    ]


def expected(after: str) -> str:
    """Return the output given on the page: a ``text`` block, or the words in backticks after 'It prints'."""
    if block := re.match(r"\s*```text\n(.*?)```", after, re.DOTALL):
        return block[1]
    sentence = re.match(r"\s*It prints ((?:`[^`]*`|,| and|\s)*)", after)
    assert sentence, f"no output is given for this program; after it comes: {after[:80]!r}"
    return "".join(line + "\n" for line in re.findall(r"`([^`]*)`", sentence[1]))


def missing(code: str) -> list[str]:
    """Return the optional packages that the program uses and that are not installed."""
    return [name for name in OPTIONAL if name in code and importlib.util.find_spec(name) is None]


def check_program(program: Program, folder: Path) -> None:
    path = folder / program.name
    path.write_text(program.code, encoding="utf-8")
    if program.name.startswith("test_"):
        # Without this project's pytest settings, as a reader would run it.
        tested = run_python(
            "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", folder, "-p", "no:cacheprovider", path
        )
        assert re.search(r"^\d+ passed", tested.stdout, re.MULTILINE), tested.stdout
        return
    done = run_python(path)
    # Pids differ. The memory of a dead worker is mentioned only if it was measured before the worker died.
    told = re.sub(r"process \d+", "process 4711", done.stdout)
    told = re.sub(r"; it had used [\d.]+ MiB of memory", "", told)
    assert told == expected(program.after), f"{program.code}\n{done.stderr}"
    assert done.stderr == ""


@pytest.fixture(scope="module")
def checks(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, list[Future[None]]]:
    """For each page that is to be tested: the results of running its programs."""
    asked_for = {item.name for item in request.session.items}
    # The programs of all pages run in parallel: most of them wait for something.
    with ThreadPoolExecutor(4) as executor:
        return {
            page: [
                executor.submit(check_program, program, tmp_path_factory.mktemp("page"))
                for program in programs(page)
                if not missing(program.code)
            ]
            for page in PAGES
            if f"{test_programs_print_what_the_page_says.__name__}[{page}]" in asked_for
        }


@pytest.mark.timeout(10 * PATIENCE)  # the first test waits for the programs of all pages
@pytest.mark.parametrize("page", PAGES)
def test_programs_print_what_the_page_says(page: str, checks: dict[str, list[Future[None]]]) -> None:
    for check in checks[page]:
        check.result()
    lacking = sorted({name for program in programs(page) for name in missing(program.code)})
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}; the others are fine")


#: Runs in a process of its own, so that no other pool or queue affects the output.
DOCSTRINGS = """
import doctest, importlib, pkgutil, mpkit
names = ["mpkit", *(module.name for module in pkgutil.walk_packages(mpkit.__path__, "mpkit."))]
names.remove("mpkit.__main__")
for name in names:
    tested = doctest.testmod(importlib.import_module(name))
    if tested.attempted:
        print(name, tested.failed)
"""


def test_examples_in_docstrings_are_true() -> None:
    lines = run_python("-c", DOCSTRINGS).stdout.splitlines()
    assert "mpkit.queue 0" in lines
    assert [line for line in lines if not line.endswith(" 0")] == []


def docstrings() -> Iterator[tuple[Path, str]]:
    for path in (ROOT / "src/mpkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                yield path, ast.get_docstring(node) or ""


def test_no_power_in_a_docstring_makes_text_bold() -> None:
    """The reference is Markdown: two powers (as 2**8) outside code would make the text between them bold."""
    for path, docstring in docstrings():
        text = re.sub(r"(`+).*?\1", "", docstring, flags=re.DOTALL)
        assert len(re.findall(r"\d\*\*\d", text)) < 2, f"{path}: {text}"


def test_no_label_in_a_docstring_gets_lost() -> None:
    """The reference would take a label whose second line is indented for the title of a box, and drop it."""
    for path, text in docstrings():
        assert not re.search(r"^(Blocking|Safe from): .*\n    ", text, re.MULTILINE), f"{path}: {text}"


def test_every_public_name_is_in_the_reference() -> None:
    pages = {page.name: page.read_text(encoding="utf-8") for page in (ROOT / "docs/reference").glob("*.md")}
    shown = set(re.findall(r"^::: (\S+)", "\n".join(pages.values()), re.MULTILINE))
    for module in (mpkit, mpkit.introspect, mpkit.pool, mpkit.process, mpkit.queue, mpkit.sync):
        for name in module.__all__:
            path = f"{module.__name__}.{name}"
            assert shown & {path, f"mpkit.{name}", module.__name__} - {"mpkit"}, f"{path} is on no page"
    for name in mpkit.errors.__all__:
        assert f"`{name}`" in pages["errors.md"], f"{name} is missing in the table of errors"


def test_the_programs_of_the_main_pages_are_found() -> None:
    assert {"README.md", "docs/tutorial/first-steps.md", "docs/how-to/choose.md"} < set(PAGES)
