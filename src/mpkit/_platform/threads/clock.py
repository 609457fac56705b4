"""The clocks that mpkit goes by."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

__all__ = ["CLOCK"]


class _Clock:
    """The clocks of `time`, and not what a test of the program has put in their place.

    What stops or moves the time (freezegun) replaces them in all modules, those of mpkit as well. But a
    process compares what its clock says with what another one has written down, and a timeout has to end.
    (Not `time.sleep`: gevent and eventlet have one of their own, for good reasons.)
    """

    __slots__ = ("monotonic", "monotonic_ns", "time")

    def __init__(self) -> None:
        self.monotonic: Callable[[], float] = time.monotonic
        self.monotonic_ns: Callable[[], int] = time.monotonic_ns
        self.time: Callable[[], float] = time.time


CLOCK: Final = _Clock()
