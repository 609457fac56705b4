"""The clocks that mpkit uses."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib.util import module_from_spec
from typing import Final


class _Clock:
    """The clocks of the module `time`, even if a test of the program has replaced them.

    Test tools that stop or move the time (such as freezegun) replace these functions in all modules,
    including those of mpkit. But processes compare times with each other, and timeouts must end. So the
    functions are taken from a fresh copy of the module `time`, because when this module is loaded, those of
    the original may have been replaced already. (Not so `time.sleep`, which gevent and eventlet replace for
    good reasons.)
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
