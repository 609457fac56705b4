"""The differences between systems and Python versions: the layers above do not ask which they run on.

Its packages, from the top down; each imports only those below it, and none re-exports anything:

- `parent_death`: how a child dies with its parent
- `files`: descriptors, mappings, file locks, and unnamed files
- `stdlib`: the private parts of the standard library, and what is built on them
- `resources`: CPUs and memory: how much this process may use, and how much another one uses
- `processes`: identity, state, descendants and end of processes, and signalling them
- `signals`: names and handlers of signals, and deferring them for a moment
- `threads`: locks, forks, waiting, and memory order

`hints` contains names for type checkers, `messages` what the texts of errors show.
"""

from __future__ import annotations
