"""Where mpkit meets what the standard library does not promise: the private parts of `multiprocessing`.

No module outside this room imports a private one (`tests/architecture/test_house.py` sees to it), except
`mpkit._platform.signals.signal_handlers`. The head of each module here tells what private names it uses, and
why there is no public way; `tests/unit/platform/test_canary.py` says which name is gone, or behaves
otherwise, in a new Python. Elsewhere stand only ``RLock._is_owned``
(`mpkit._platform.threads.interruptible_lock`), the methods of a `SemLock`, and ``concurrent.futures._base``,
on whose `Future` the handle of a task is built (`mpkit.pool._handle`).

- `child_process`: a process with a start method of its own
    - `child_launch`: how it is launched; `child_popen`: how it is waited for, exactly, and signalled
    - `preparation`: what a child is told about the program that starts it; `contexts`: the start method
    - `passing`: what it gets while it is started, as programs of ours do
- `fork_server`: starting that of multiprocessing; `server_mask` and `server_clients`, which it imports
- `tracker`: the resource tracker of multiprocessing; `tracker_process`: starting it; `notes`: what it may not
  know of a killed process
- `sem_lock`: semaphores that are opened by name
- `exit_hooks`: what is called at the end of a process
"""

from __future__ import annotations
