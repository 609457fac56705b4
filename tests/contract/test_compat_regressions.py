"""Where `mpkit.compat` once did otherwise than the standard library."""

from __future__ import annotations

from typing import Any

import pytest

from tests.helpers.processes import run_python

# -- the end of a program
# ---------------------------------------------------------------------------------------------------------

PROGRAM = """
import sys
import time

from mpkit.compat import futures


def work():
    # It ends long after the program has come to its end.
    time.sleep(0.2)
    print("done", flush=True)


def shut_down(keep):
    executor = futures.ProcessPoolExecutor(1)
    for _ in range(2):
        executor.submit(work)
    executor.shutdown(wait=False)
    if keep:
        globals()["executor"] = executor


if __name__ == "__main__":
    shut_down(sys.argv[1] == "keep")
"""


@pytest.mark.parametrize("keep", ["keep", "drop"])
def test_a_program_that_has_not_waited_in_shutdown_waits_at_its_end(tmp_path: Any, keep: str) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    ended = run_python("-W", "error", program, keep)
    assert ended.stdout.split() == ["done", "done"]
    assert ended.stderr == ""
