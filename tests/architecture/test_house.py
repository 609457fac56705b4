"""The house stands as it was drawn: floors, light imports, one place for what is private to the stdlib."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.helpers.processes import ROOT, run_python

SOURCE = ROOT / "src" / "mpkit"
MODULES = sorted(SOURCE.rglob("*.py"))

#: Modules of the standard library that promise nothing, and the files that may use them.
PRIVATE = {
    "_multiprocessing",
    "_posixshmem",
    "_posixsubprocess",
    "_signal",
    "_winapi",
    "multiprocessing.forkserver",
    "multiprocessing.popen_fork",
    "multiprocessing.popen_forkserver",
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.resource_tracker",
    "multiprocessing.spawn",
    "multiprocessing.util",
}
MAY_USE_THEM = {
    SOURCE / "_platform" / name
    for name in (
        "signals/signal_handlers.py",
        "stdlib/child_launch.py",
        "stdlib/child_popen.py",
        "stdlib/child_process.py",
        "stdlib/exit_hooks.py",
        "stdlib/fork_server.py",
        "stdlib/preparation.py",
        "stdlib/passing.py",
        "stdlib/sem_lock.py",
        "stdlib/tracker.py",
        "stdlib/tracker_process.py",
    )
}


def named(path: Path) -> str:
    return str(path.relative_to(SOURCE))


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", autouse=True)
def _forget_trees() -> Iterator[None]:
    """Each collection, in all the tests that follow, would look through two hundred thousand objects more."""
    yield
    tree_of.cache_clear()


def imports(path: Path, *, at_import: bool = False, for_types: bool = False) -> Iterator[str]:
    """The modules that `path` names in imports; with `at_import` only what runs when it is imported.

    With `for_types` also those that only type checkers import.
    """
    pending: list[ast.AST] = [tree_of(path)]
    while pending:
        node = pending.pop()
        if at_import and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if not for_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            pending.extend(node.orelse)
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        pending.extend(ast.iter_child_nodes(node))


def test_the_floors_are_kept() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed (group `layers`)")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_leads_back_to_itself() -> None:
    """Not for type checkers, either: each module can be read with those alone that it rests on."""
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in MODULES}
    # What a package passes on is no circle: its modules import each other, and not the package.
    left = {
        name: {found for found in imports(path, for_types=True) if found in names and found != name}
        for name, path in names.items()
    }
    while ends := [name for name, needed in left.items() if not needed & left.keys()]:
        for name in ends:
            del left[name]
    assert sorted(left) == []


@pytest.mark.parametrize(
    "package",
    [
        "_platform",
        "_platform/files",
        "_platform/parent_death",
        "_platform/processes",
        "_platform/resources",
        "_platform/signals",
        "_platform/stdlib",
        "_platform/threads",
        "_shm",
        "_shm/locks",
        "_shm/memory",
        "_shm/queues",
        "_wire",
        "pool",
        "pool/_engine",
        "pool/_protocol",
        "pool/_worker",
        "process",
    ],
)
def test_the_map_of_a_package_shows_each_of_its_modules(package: str) -> None:
    shown = set(re.findall(r"`(\w+)`", ast.get_docstring(tree_of(SOURCE / package / "__init__.py")) or ""))
    there = {path.parent.name for path in (SOURCE / package).glob("*/__init__.py")}
    there |= {path.stem for path in (SOURCE / package).glob("*.py")} - {"__init__"}
    assert sorted(there - shown) == []


def test_psutil_is_imported_at_module_level_in_introspect_alone() -> None:
    others = [path for path in MODULES if not named(path).startswith("introspect")]
    guilty = [
        named(path)
        for path in others
        if any(name.split(".")[0] == "psutil" for name in imports(path, at_import=True))
    ]
    assert guilty == []


def test_nobody_asks_the_clocks_of_time() -> None:
    """A test of the program that stops the time would stop who does. `clock` has its own."""
    stoppable = {"monotonic", "monotonic_ns", "time"}
    askers = {
        named(path)
        for path in MODULES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute)
        and node.attr in stoppable
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    }
    assert [name for name in askers if not name.startswith(("cli/", "introspect/"))] == []


def test_private_parts_of_the_standard_library_are_used_in_one_room_alone() -> None:
    used = {named(path): PRIVATE & set(imports(path)) for path in MODULES if path not in MAY_USE_THEM}
    assert {name: parts for name, parts in used.items() if parts} == {}


@pytest.mark.parametrize(
    "statement",
    [
        "import mpkit",
        "from mpkit import BoundedQueue, Lock, LockedCounter, TaskPool, WorkerProcess",
        "import mpkit.pool._worker.worker",
    ],
)
def test_importing_is_light(statement: str) -> None:
    # `inspect` comes with dataclasses, and takes longer to load than any other module here.
    libraries = {"asyncio", "ctypes.util", "inspect", "psutil", "unittest"}
    heavy = libraries | {"mpkit.cli", "mpkit.compat", "mpkit.introspect"}
    # Python 3.14 has it for its own tracebacks, which all that reports errors needs.
    code = (
        "import sys, traceback; before = set(sys.modules); "
        f"{statement}; print(*sorted({heavy!r} & set(sys.modules) - before))"
    )
    assert run_python("-c", code).stdout.split() == []


def test_importing_the_doorway_loads_nothing_of_the_house() -> None:
    code = "import sys, mpkit; print(*sorted(name for name in sys.modules if name.startswith('mpkit.')))"
    assert run_python("-c", code).stdout.split() == []


def test_the_rooms_of_the_platform_pass_nothing_on() -> None:
    rooms = [path for path in MODULES if path.name == "__init__.py" and named(path).startswith("_platform")]
    assert {name for room in rooms for name in imports(room)} == {"__future__", "__future__.annotations"}


@pytest.mark.parametrize("room", ["compat", "errors", "introspect", "pool", "process", "queue", "sync"])
def test_each_room_can_be_reached_through_the_doorway(room: str) -> None:
    assert run_python("-c", f"import mpkit; print(mpkit.{room}.__name__)").stdout == f"mpkit.{room}\n"


def test_what_a_process_asks_about_itself_does_not_lead_back() -> None:
    # `process` imports `introspect` where it needs it, against the order of the floors.
    modules = [path for path in MODULES if named(path).startswith("introspect")]
    assert [named(path) for path in modules if "mpkit.process" in set(imports(path))] == []


def test_every_directory_of_tests_is_a_package() -> None:
    # Otherwise two modules of one name would shadow each other, and a spawned child could not import them.
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(path) for path in sorted(directories) if not (path / "__init__.py").exists()] == []
