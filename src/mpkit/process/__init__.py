"""`WorkerProcess`: a process that returns a result, ends with its parent, and can be stopped for good.

- `worker`: the class
- `arguments`: what it is given, checked
- `sending`: how its object gets into the child
- `ending`: how it is ended with all its descendants
- `outcome`: what came of it
- `handle`: what the parent alone keeps
- `ties`: what parent and child have in common
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
