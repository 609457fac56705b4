"""The threads of this process: their locks, what becomes of them at a fork, how they wait, and in which order
others see what they store.

- `interruptible_lock`: a lock that an interrupt cannot leave locked
- `weak_group`: objects that are known as long as somebody else has them
- `forks`: what is to be done at forks
- `greenlets`: whether somebody has put them in the place of threads
- `clock`: the clocks, whatever a test of the program puts in their place
- `deadlines`: checked timeouts and the time left of them
- `readiness`: waiting for a descriptor
- `scheduling`: whether this Python lets them run side by side, and letting others run
- `fences`: memory order between processes
"""

from __future__ import annotations
