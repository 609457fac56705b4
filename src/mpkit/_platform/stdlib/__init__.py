"""Everything that uses private parts of the standard library, mostly of `multiprocessing`.

No module outside this package imports a private module (`tests/architecture/test_house.py` checks this),
except `mpkit._platform.signals.signal_handlers`. The head of each module here tells which private names it
uses, and why there is no public way; `tests/unit/platform/test_canary.py` fails if one of them is missing or
behaves differently in a new Python. Elsewhere there are only ``RLock._is_owned``
(`mpkit._platform.threads.interruptible_lock`), the methods of a `SemLock`, and ``concurrent.futures._base``,
from whose `Future` the handle of a task is derived (`mpkit.pool._handle`).

- `child_process`: a process whose start method can be chosen for each instance
    - `child_launch`: launching it; `child_popen`: waiting for it and signalling it
    - `preparation`: what a child is told about the program that starts it; `contexts`: the start method
    - `passing`: descriptors for a child, or for another program, that is being started
- `fork_server`: starting the fork server; `server_mask` and `server_clients`: modules that the server imports
- `tracker`: talking to the resource tracker; `tracker_process`: starting it; `notes`: what the tracker may
  not know about a killed process
- `sem_lock`: semaphores that can be opened by name
- `exit_hooks`: functions that are called at the end of a process
"""

from __future__ import annotations
