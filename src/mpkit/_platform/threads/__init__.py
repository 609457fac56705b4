"""Threads of this process: locks, forks, waiting, and memory order.

- `interruptible_lock`: a lock that an interrupt cannot leave locked
- `weak_group`: a set of weak references
- `forks`: hooks that are called at forks
- `greenlets`: whether a greenlet library has replaced threads
- `clock`: the clocks of the system, even if a test of the program has replaced them
- `deadlines`: checking timeouts, and the time that is left
- `readiness`: waiting for a descriptor
- `scheduling`: whether this Python is free-threaded, and yielding the CPU
- `fences`: memory order between processes
"""

from __future__ import annotations
