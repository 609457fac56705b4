"""Which process a pid means, what it is doing, its descendants, and its end.

- `identity`: which process a pid means, pids being reused
- `start_times`: whether a process was started before a certain moment
- `process_state`: what a process is doing
- `stat_file`: where Linux tells it
- `exits`: waiting for the end of any process
- `families`: the descendants of a process, and how to end them
"""

from __future__ import annotations
