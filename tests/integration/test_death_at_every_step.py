"""Whoever dies at whichever step of whichever operation: the others go on."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.integration import death_at_every_step


@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="there is no process to fork from"
)
@pytest.mark.parametrize("case", death_at_every_step.CASES)
def test_everything_is_whole_after_a_death(case: str) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=death_at_every_step.run, args=(case,))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0, "its traceback is in what it has written"
