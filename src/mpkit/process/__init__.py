"""`WorkerProcess`: a process that returns a result, ends with its parent, and can be stopped for good.

Examples:
    >>> import math
    >>> from mpkit import WorkerProcess
    >>> with WorkerProcess.call(math.factorial, 20) as process:
    ...     process.result()
    2432902008176640000
"""

from __future__ import annotations

from mpkit.process.states import ProcessState
from mpkit.process.worker import WorkerProcess

__all__ = ["ProcessState", "WorkerProcess"]
