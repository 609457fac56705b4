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


@pytest.mark.parametrize("method", ["default", "spawn", "forkserver"])
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
from mpkit._platform.contexts import resolve_context

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
