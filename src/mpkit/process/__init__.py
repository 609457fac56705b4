"""`WorkerProcess`: a process that returns a result, ends with its parent, and can be stopped for good.

- `worker`: the class that users see
- `arguments`: checks the constructor's arguments
- `sending`: sends the process object to the child, where it has to be pickled
- `ending`: ends a process together with all its descendants
- `outcome`: works out what the target returned or raised, or how the process died
- `handle`: the parent's private state
- `ties`: what parent and child share, and what the child does at its start and end
- `report`: the file through which the child tells its result
- `memory_watch`: kills processes that exceed their memory limit

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
