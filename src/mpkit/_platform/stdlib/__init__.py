"""Where mpkit meets what the standard library does not promise, and what it makes of it.

- `seam`: all private parts of the standard library, with
    - `child_process`: a process with a start method of its own
    - `child_launch`: how it is launched; `child_popen`: how it is waited for, exactly, and signalled
    - `preparation`: what a child is told about the program that starts it
    - `fork_server`: starting that of multiprocessing; `server_mask` and `server_clients`, which it imports
    - `tracker_process`: starting the resource tracker
- `contexts`: the start method
- `tracker`: the resource tracker of multiprocessing; `notes`: what it may not know of a killed process
"""

from __future__ import annotations
