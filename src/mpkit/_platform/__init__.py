"""What differs between systems and Python versions: everything above this floor is written once.

- `deadlines`: checked timeouts and the time left of them
- `identity`: which process a pid means, pids being reused
- `start_times`: whether a process was started before a certain moment
- `process_state`: what a process is doing
- `stat_file`: where Linux tells it
- `exits`: waiting for the end of any process
- `readiness`: waiting for a descriptor
- `scheduling`: letting others run
- `cpus`, `cgroups`: how many CPUs this process may really use
- `contexts`: the start method
- `forks`: what is to be done at forks
- `greenlets`: whether somebody has put them in the place of threads
- `build`: how the interpreter was built
- `fences`: memory order between processes
- `filelock`: a lock that the kernel frees
- `use_marks`: whether anybody has a file open
- `memory`: resident memory, and whether the out-of-memory killer was at work
- `cpu_time`: how much CPU time a process has used
- `signals`: the names of signals, and the one that ends a process
- `handlers_at_work`: whether another process is still inside the handler of one
- `interrupts`: keeping Ctrl-C away for a moment
- `deferred_handlers`: keeping the handlers of other signals out of a fork
- `anonymous`: files without a name
- `positioned`: reading and writing at an offset
- `file_maps`: mapping files
- `descriptors`: whether one still is what it was, whose a file is, and how one is opened
- `tracker`: the resource tracker of multiprocessing; `notes`: what it may not know of a killed process
- `families`: the descendants of a process, and how to end them
- `parent_watch`, `guardian`: how a child dies with its parent
- `seam`: all private parts of the standard library, with `child_process`, `child_popen`, `fork_server` (and
  `server_mask` and `server_clients`, which the server imports), `tracker_process` and `signal_handlers`
- `interruptible_lock`: a lock that an interrupt cannot leave locked
- `weak_group`: objects that are known as long as somebody else has them
- `hints`: names for type checkers
"""

from __future__ import annotations
