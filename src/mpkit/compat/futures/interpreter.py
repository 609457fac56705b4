"""`concurrent.futures.interpreter`, which there is from Python 3.14 on: the standard library's own module."""

from __future__ import annotations

import sys

if sys.version_info >= (3, 14):
    import concurrent.futures.interpreter
    from concurrent.futures.interpreter import (
        BrokenInterpreterPool,
        InterpreterPoolExecutor,
    )

    __all__ = [
        "BrokenInterpreterPool",
        "InterpreterPoolExecutor",
    ]

    # The module itself, so that every name in it is here as well.
    sys.modules[__name__] = concurrent.futures.interpreter
else:
    raise ModuleNotFoundError(f"{__name__!r} needs Python 3.14", name=__name__)
