"""CPUs and memory: how much this process may use, and how much another one uses.

- `cpus`: how many CPUs this process may really use
- `cgroups`: the control groups that limit it
- `memory`: resident memory, and whether the out-of-memory killer was at work
- `cpu_time`: how much CPU time a process has used
"""

from __future__ import annotations
