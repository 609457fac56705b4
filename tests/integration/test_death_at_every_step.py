"""A process may die at any step of any operation: the other processes can go on using the object."""

from __future__ import annotations

import multiprocessing

import pytest

from tests.integration import death_at_every_step


@pytest.mark.skipif(
    "forkserver" not in multiprocessing.get_all_start_methods(), reason="the fork server starts each case"
)
@pytest.mark.parametrize("case", death_at_every_step.CASES)
def test_the_object_is_intact_after_a_death(case: str) -> None:
    process = multiprocessing.get_context("forkserver").Process(target=death_at_every_step.run, args=(case,))
    process.start()
    try:
        process.join()
    finally:
        process.kill()
    assert process.exitcode == 0, "see the traceback that it has written"
