"""`WorkerProcess`: a process that returns a result, ends with its parent, and can be stopped for good.

- `worker`: the class
- `handle`: what parent and child have in common, and what the parent alone keeps
- `report`: the result, on its way through a file
- `memory_watch`: who is over the memory limit

Examples:
    >>> import math
    >>> from mpkit import WorkerProcess
    >>> with WorkerProcess.call(math.factorial, 20) as process:
    ...     process.result()
    2432902008176640000
"""

from __future__ import annotations

from mpkit._platform.processes.process_state import ProcessState
from mpkit.process.worker import WorkerProcess

__all__ = ["ProcessState", "WorkerProcess"]
