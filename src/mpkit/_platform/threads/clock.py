"""The clocks that mpkit goes by."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import module_from_spec
from typing import Final

__all__ = ["CLOCK"]


class _Clock:
    """The clocks of `time`, and not what a test of the program has put in their place.

    What stops or moves the time (freezegun) replaces them in all modules, those of mpkit as well. But a
    process compares what its clock says with what another one has written down, and a timeout has to end. So
    they are taken from a copy of that module: the first use of mpkit, which loads this one, may come when
    they have been replaced. (Not `time.sleep`: gevent and eventlet have one of their own, for good reasons.)
    """

    __slots__ = ("monotonic", "monotonic_ns", "time")

    def __init__(self) -> None:
        spec = time.__spec__
        assert spec.loader is not None
        copy = module_from_spec(spec)
        spec.loader.exec_module(copy)
        self.monotonic: Callable[[], float] = copy.monotonic
        self.monotonic_ns: Callable[[], int] = copy.monotonic_ns
        self.time: Callable[[], float] = copy.time


CLOCK: Final = _Clock()
