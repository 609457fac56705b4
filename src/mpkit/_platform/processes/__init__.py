"""Which process a pid means, what it is doing, its descendants, and its end.

- `identity`: which process a pid means, pids being reused
- `start_times`: whether a process was started before a certain moment
- `process_state`: what a process is doing
- `stat_file`: where Linux tells it
- `exits`: waiting for the end of any process
- `signalling`: sending a signal to one very process
- `family_tree`: who descends from whom
- `families`: signalling and ending processes together with all their descendants
"""

from __future__ import annotations
