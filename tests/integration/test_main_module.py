"""How children use the main module of the program that has started them, and its start method."""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path

import pytest

from tests.helpers.processes import python, run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has only spawn")

# It has no `if __name__ == "__main__"`, on purpose.
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
# More than fits into a pipe, so the child dies before it has read all of it.
BIG_PROCESS = {"start": "WorkerProcess.call(len, bytes(1_000_000))", "result": "started.result()"}
BIG_POOL = {"start": "TaskPool(1, len, [bytes(1_000_000)])", "result": "started.apply(abs, [-1])"}


# The default is forkserver.
@pytest.mark.parametrize("method", ["default", "spawn"])
@pytest.mark.parametrize(
    "what", [PROCESS, POOL, BIG_PROCESS, BIG_POOL], ids=["process", "pool", "big-process", "big-pool"]
)
def test_a_program_without_a_main_guard_is_told_to_add_one(
    method: str, what: dict[str, str], tmp_path: Path
) -> None:
    program = tmp_path / "program.py"
    program.write_text(UNGUARDED.format(method=method, **what))
    with python(program) as process:
        printed, errors = process.communicate()
    assert process.returncode == 1
    assert "result:" not in printed, "the program went on, after it had been run again in the child"
    assert "if __name__ ==" in errors


ENDS_AT_ONCE = """
import os, signal
from mpkit import WorkerProcess

if __name__ != "__main__":
    os._exit(0)
signal.signal(signal.SIGPIPE, signal.SIG_DFL)
with WorkerProcess(target=len, args=(bytes(1_000_000),), start_method="spawn") as process:
    pass
print(type(process.exception()).__name__, signal.sigpending(), signal.pthread_sigmask(signal.SIG_BLOCK, ()))
"""


def test_a_child_that_ends_before_it_has_read_its_arguments_does_not_end_the_program(tmp_path: Path) -> None:
    """SIGPIPE would, if the program has restored its default."""
    program = tmp_path / "program.py"
    program.write_text(ENDS_AT_ONCE)
    with python(program) as process:
        printed, errors = process.communicate()
    assert printed.split() == ["WorkerCrashed", "set()", "set()"], errors


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
    # The program has the guard, so advice to add one would not help.
    program = tmp_path / "program.py"
    program.write_text(GUARDED.format(method=method, **what))
    with program.open() as source, python("-", stdin=source) as process:
        printed, errors = process.communicate()
    assert "standard input" in printed, errors


@pytest.mark.parametrize("what", [PROCESS_OF_MAIN, POOL_OF_MAIN], ids=["process", "pool"])
def test_a_main_py_is_told_that_its_functions_cannot_be_imported_in_workers(
    what: dict[str, str], tmp_path: Path
) -> None:
    # A directory is run in the same way as `python -m package` and a zip file.
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


def test_starting_processes_in_threads_does_not_fix_the_start_method(tmp_path: Path) -> None:
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


#: CPython issue 113964: in these versions, a thread that outlives the main module can start no other thread.
starts_threads_late = pytest.mark.skipif(
    (3, 12) <= sys.version_info < (3, 12, 3), reason="Python 3.12.0 to 3.12.2 start no threads then"
)


@starts_threads_late
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_pools_and_processes_work_in_threads_after_the_end_of_the_main_module(
    method: str, tmp_path: Path
) -> None:
    """Workers that are started then must still find the functions of the main module."""
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


def test_objects_of_the_main_module_are_deleted_before_other_modules(tmp_path: Path) -> None:
    """If mpkit kept a reference to the main module, its objects would live until the modules that they use
    have been wiped, and their ``__del__`` would fail.
    """
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
def test_a_module_that_uses_a_pool_at_import_does_not_make_pools_without_end(
    method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker imports the module for its first task, makes a pool in it, whose worker imports it ...

    mpkit must refuse it at some point, instead of starting processes for ever.
    """
    (tmp_path / "table.py").write_text(POOL_AT_THE_TOP)
    (tmp_path / "program.py").write_text("if __name__ == '__main__':\n    import table\n")
    monkeypatch.setenv("METHOD", method)
    with python(tmp_path / "program.py", cwd=tmp_path) as process:
        _, errors = process.communicate()
    assert process.returncode == 1
    assert "module 'table' makes a pool when it is imported" in errors
    assert "without end" in errors
    # It is imported by the program, by its worker for each of the two tasks, and by the worker of that one's
    # pool for its two tasks.
    assert len((tmp_path / "imports").read_text()) <= 7


def test_a_module_may_have_a_pool_that_its_workers_do_not_use(tmp_path: Path) -> None:
    """The workers import the module for their tasks, and make a pool as well. That one gets no tasks."""
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
def test_a_main_module_without_a_file_is_not_run_again_in_workers(tmp_path: Path, way: str) -> None:
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
