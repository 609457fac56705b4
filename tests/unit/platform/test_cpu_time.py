"""How much CPU time a process has used."""

from __future__ import annotations

import os
import time

from mpkit._platform.resources.cpu_time import cpu_seconds


def test_the_time_grows_while_the_process_works() -> None:
    before = cpu_seconds(os.getpid())
    assert before is not None
    # The system counts in steps of a hundredth of a second.
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    after = cpu_seconds(os.getpid())
    assert after is not None
    assert after > before


def test_the_time_of_a_process_that_does_not_exist_is_unknown() -> None:
    # Larger than any pid.
    assert cpu_seconds(2**30) is None
