"""Identity, state, descendants and end of processes, and signalling them.

- `identity`: which process a pid means, although pids are reused
- `start_times`: whether a process was started before a certain moment
- `process_state`: the states of a process
- `stat_file`: the file in which Linux tells most about a process
- `exits`: waiting for the end of any process
- `signalling`: sending a signal to exactly one process
- `family_tree`: the descendants of a process
- `families`: signalling and killing processes together with all their descendants
"""

from __future__ import annotations
