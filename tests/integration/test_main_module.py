"""What a child makes of the program that has started it: its main module, and its start method."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import python, run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="there is spawn alone")

# No `if __name__ == "__main__"` on purpose.
UNGUARDED = """
import multiprocessing
from mpkit import TaskPool, WorkerProcess

if {method!r} != "default":
    multiprocessing.set_start_method({method!r}, force=True)
with {start} as started:
    print("result:", {result})
"""
PROCESS = {"start": "WorkerProcess.call(abs, -1)", "result": "started.result()"}
POOL = {"start": "TaskPool(1)", "result": "started.apply(abs, [-1])"}


# By default it is forkserver.
@pytest.mark.parametrize("method", ["default", "spawn"])
@pytest.mark.parametrize("what", [PROCESS, POOL], ids=["process", "pool"])
def test_a_program_that_would_start_itself_again_is_told_so(
    method: str, what: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNGUARDED.format(method=method, **what))
    with python(program) as process:
        printed, errors = process.communicate()
    assert process.returncode == 1
    assert "result:" not in printed, "it has been run twice"
    assert "if __name__ ==" in errors


GUARDED = """
import multiprocessing, os
from mpkit import TaskPool, WorkerProcess

def work():
    return os.getpid()

if __name__ == "__main__":
    multiprocessing.set_start_method({method!r}, force=True)
    try:
        with {start} as started:
            {result}
    except Exception as error:
        print(type(error).__name__, error)
"""
PROCESS_OF_MAIN = {"start": "WorkerProcess.call(work)", "result": "started.result()"}
POOL_OF_MAIN = {"start": "TaskPool(1)", "result": "started.apply(work)"}


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
@pytest.mark.parametrize("what", [PROCESS_OF_MAIN, POOL_OF_MAIN], ids=["process", "pool"])
def test_a_program_from_standard_input_is_told_that_it_cannot_be_imported(
    method: str, what: dict[str, str], tmp_path: Path
) -> None:
    # It has the guard: to be told that alone would not help.
    program = tmp_path / "program.py"
    program.write_text(GUARDED.format(method=method, **what))
    with program.open() as source, python("-", stdin=source) as process:
        printed, errors = process.communicate()
    assert "standard input" in printed, errors


@pytest.mark.parametrize("what", [PROCESS_OF_MAIN, POOL_OF_MAIN], ids=["process", "pool"])
def test_a_main_file_of_a_package_is_told_that_it_is_not_imported_again(
    what: dict[str, str], tmp_path: Path
) -> None:
    # A directory is run as `python -m package` and a zip file are.
    program = tmp_path / "__main__.py"
    program.write_text(GUARDED.format(method="spawn", **what))
    printed = run_python(tmp_path).stdout
    assert "SerializationError" in printed
    assert "of a __main__.py" in printed


THREADS = """
import multiprocessing, threading
from mpkit import WorkerProcess
from mpkit._platform.stdlib.contexts import resolve_context

def start():
    for _ in range(5):
        process = WorkerProcess.call(abs, -1)
        process.start()
        process.join()

if __name__ == "__main__":
    threads = [threading.Thread(target=start) for _ in range(3)]
    for thread in threads:
        thread.start()
    seen = set()
    while any(thread.is_alive() for thread in threads):
        seen.add(resolve_context(None).get_start_method())
    print(*seen, multiprocessing.get_start_method(allow_none=True))
"""


def test_threads_that_start_processes_settle_nothing(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(THREADS)
    default = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    assert run_python(program).stdout == f"{default} None\n"


AFTER_THE_END = """
import sys, threading
from mpkit import TaskPool, WorkerProcess

def work(number):
    return number * number

def serve(pool):
    threading.main_thread().join()
    print("old pool:", [pool.apply(work, (number,)) for number in range(4)], flush=True)
    pool.close()
    pool.join()
    with TaskPool(1, context=sys.argv[1]) as new:
        print("new pool:", new.apply(work, (5,)), flush=True)
    with WorkerProcess(target=work, args=(6,), start_method=sys.argv[1]) as process:
        print("process:", process.result(), flush=True)

if __name__ == "__main__":
    pool = TaskPool(1, maxtasksperchild=1, context=sys.argv[1])
    pool.apply(work, (0,))
    threading.Thread(target=serve, args=(pool,)).start()
"""


#: CPython's issue 113964: in these, a thread that goes on after the main module can start no other one.
starts_threads_late = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="Python 3.12.0 to 3.12.2 start no thread then"
)


@starts_threads_late
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_threads_go_on_after_the_end_of_the_main_module(method: str, tmp_path: Path) -> None:
    """Workers that were started then found no function of the main module."""
    program = tmp_path / "program.py"
    program.write_text(AFTER_THE_END)
    with python(program, method) as process:
        printed, errors = process.communicate()
    assert printed.splitlines() == ["old pool: [0, 1, 4, 9]", "new pool: 25", "process: 36"], errors
    assert process.returncode == 0


LAST_OBJECT = """
import json
import mpkit.process

class Last:
    def __del__(self, module=json):
        print("whole" if module.JSONDecoder else "wiped", flush=True)

last = Last()
"""


def test_objects_of_the_main_module_are_cleared_away_before_other_modules(tmp_path: Path) -> None:
    """The module was kept, and with it its objects, until the modules that they need had been wiped."""
    program = tmp_path / "program.py"
    program.write_text(LAST_OBJECT)
    with python(program) as process:
        printed, errors = process.communicate()
    assert printed.split() == ["whole"], errors


POOL_AT_THE_TOP = """
import os
from mpkit import TaskPool

imports = os.path.join(os.path.dirname(os.path.abspath(__file__)), "imports")
with open(imports, "a") as file:
    file.write("x")
assert os.path.getsize(imports) < 20, "without end"

def work(number):
    return number + 1

with TaskPool(1, context=os.environ["METHOD"]) as pool:
    table = pool.map(work, [1, 2])
"""


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_module_that_uses_a_pool_when_it_is_imported_makes_no_pools_without_end(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker imported it for its first task, made a pool, whose worker imported it ..."""
    (tmp_path / "table.py").write_text(POOL_AT_THE_TOP)
    (tmp_path / "program.py").write_text("if __name__ == '__main__':\n    import table\n")
    monkeypatch.setenv("METHOD", method)
    with python(tmp_path / "program.py", cwd=tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "module 'table' makes a pool when it is imported" in errors
    assert "without end" in errors
    # By the program, by its worker for each of the two tasks, and by the worker of that for its two.
    assert len((tmp_path / "imports").read_text()) <= 7


def test_a_module_may_have_a_pool_that_its_workers_do_not_use(tmp_path: Path) -> None:
    """They import it for their tasks, and make one as well."""
    (tmp_path / "jobs.py").write_text(
        "from mpkit import TaskPool\npool = TaskPool(1)\ndef work(number):\n    return number + 1\n"
    )
    (tmp_path / "program.py").write_text(
        "if __name__ == '__main__':\n    import jobs\n    print(jobs.pool.apply(jobs.work, (1,)))\n"
    )
    with python(tmp_path / "program.py", cwd=tmp_path) as process:
        printed, errors = process.communicate()
    assert printed.strip() == "2", errors


@pytest.mark.parametrize("way", [pytest.param("standard input", marks=starts_threads_late), "taken away"])
def test_a_main_module_that_is_not_to_be_imported_again_is_not(tmp_path: Path, way: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "import sys, threading\n"
        "from mpkit import TaskPool\n"
        "def serve():\n"
        "    if sys.argv[1] == 'standard input':\n"
        "        threading.main_thread().join()\n"
        "    with TaskPool(1, context='spawn') as pool:\n"
        "        print(pool.apply(abs, (-3,)), flush=True)\n"
        "with open(sys.argv[2], 'a') as file:\n"
        "    file.write('x')\n"
        "if sys.argv[1] == 'taken away':\n"
        "    del __file__\n"
        "    serve()\n"
        "    assert '__file__' not in globals()\n"
        "else:\n"
        "    threading.Thread(target=serve).start()\n"
    )
    imports = tmp_path / "imports"
    if way == "standard input":
        with program.open() as source, python("-", way, imports, stdin=source) as process:
            printed, errors = process.communicate()
    else:
        with python(program, way, imports) as process:
            printed, errors = process.communicate()
    assert printed.strip() == "3", errors
    assert imports.read_text() == "x"


def test_a_task_may_import_a_module_that_makes_a_pool(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "table.py").write_text(POOL_AT_THE_TOP.replace("map(work", "map(abs"))
    program = """
import importlib
from mpkit import TaskPool

def table():
    return importlib.import_module("table").table

if __name__ == "__main__":
    with TaskPool(1) as pool:
        print(pool.apply(table))
"""
    (tmp_path / "program.py").write_text(program)
    monkeypatch.setenv("METHOD", "spawn")
    with python(tmp_path / "program.py", cwd=tmp_path) as process:
        printed, errors = process.communicate()
    assert printed.strip() == "[1, 2]", errors
