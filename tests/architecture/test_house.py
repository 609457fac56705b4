"""The structure of the source: layers, cheap imports, one place for private names of the standard library."""

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

#: Modules of the standard library without a stable interface, and the files that may use them.
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
    """Drop the parsed sources afterwards: they are 200,000 objects, which slow down garbage collections."""
    yield
    tree_of.cache_clear()


def imports(path: Path, *, at_import: bool = False, for_types: bool = False) -> Iterator[str]:
    """The modules that `path` imports.

    With `at_import`, only those that are imported when `path` is. With `for_types`, also those that only type
    checkers import.
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


def test_no_layer_imports_a_higher_one() -> None:
    program = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    if program is None:
        pytest.skip("import-linter is not installed (group `layers`)")
    done = subprocess.run([program, "--no-cache"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_there_are_no_circular_imports() -> None:
    """Not even for type checkers: a module can be understood together with only those that it imports."""
    names = {".".join(path.relative_to(SOURCE.parent).with_suffix("").parts): path for path in MODULES}
    # A package that re-exports names of its modules is no circle: the modules do not import the package.
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
def test_the_docstring_of_a_package_lists_each_of_its_modules(package: str) -> None:
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


def test_mpkit_does_not_call_the_clocks_of_time_directly() -> None:
    """A test of a program may stop the clocks of `time`. mpkit must use the real ones, which `clock`
    keeps.
    """
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


def test_private_parts_of_the_standard_library_are_used_only_in_one_package() -> None:
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
    # `dataclasses` imports `inspect`, which takes longer to load than any other of these modules.
    libraries = {"asyncio", "ctypes.util", "inspect", "psutil", "unittest"}
    heavy = libraries | {"mpkit.cli", "mpkit.compat", "mpkit.introspect"}
    # From Python 3.14 on `traceback` imports it, which everything that reports errors needs.
    code = (
        "import sys, traceback; before = set(sys.modules); "
        f"{statement}; print(*sorted({heavy!r} & set(sys.modules) - before))"
    )
    assert run_python("-c", code).stdout.split() == []


def test_what_workers_import_has_no_named_tuple_in_class_form() -> None:
    """Up to Python 3.13, its annotations are compiled at each start of a worker: see `architecture.md`."""
    code = (
        "import sys, mpkit.pool._worker.worker\n"
        "for name, module in sys.modules.items():\n"
        "    if name.startswith('mpkit.'):\n"
        "        print(module.__file__)"
    )
    loaded = [Path(file) for file in run_python("-c", code).stdout.splitlines()]
    assert SOURCE / "_shm" / "memory" / "names.py" in loaded
    found = [
        f"{named(path)}: {node.name}"
        for path in loaded
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ClassDef) and "NamedTuple" in map(ast.unparse, node.bases)
    ]
    assert found == []


def test_import_mpkit_loads_none_of_its_modules() -> None:
    code = "import sys, mpkit; print(*sorted(name for name in sys.modules if name.startswith('mpkit.')))"
    assert run_python("-c", code).stdout.split() == []


def test_the_packages_of_the_platform_re_export_nothing() -> None:
    inits = [path for path in MODULES if path.name == "__init__.py" and named(path).startswith("_platform")]
    assert {name for init in inits for name in imports(init)} == {"__future__", "__future__.annotations"}


@pytest.mark.parametrize("package", ["compat", "errors", "introspect", "pool", "process", "queue", "sync"])
def test_each_public_module_is_an_attribute_of_mpkit(package: str) -> None:
    assert run_python("-c", f"import mpkit; print(mpkit.{package}.__name__)").stdout == f"mpkit.{package}\n"


def test_introspect_does_not_import_process() -> None:
    # `process` imports `introspect`, which is the one exception to the order of the layers.
    modules = [path for path in MODULES if named(path).startswith("introspect")]
    assert [named(path) for path in modules if "mpkit.process" in set(imports(path))] == []


def test_every_directory_of_tests_is_a_package() -> None:
    # Otherwise two modules of one name would shadow each other, and a spawned child could not import them.
    directories = {path.parent for path in (ROOT / "tests").rglob("test_*.py")}
    assert [str(path) for path in sorted(directories) if not (path / "__init__.py").exists()] == []
