"""`concurrent.futures.interpreter`, the standard library's own module. Before Python 3.14 there is none.

Then this one is empty, so that importing a name from it raises an `ImportError`, as it would there.
"""

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
