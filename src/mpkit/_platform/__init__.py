"""What differs between systems and Python versions: everything above this floor is written once.

Its rooms, from the top down; each imports only those below it, and none passes anything on:

- `parent_death`: how a child dies with its parent
- `files`: descriptors, mappings, locks on files, and files without a name
- `stdlib`: the private parts of the standard library, and what is made of them
- `resources`: CPUs and memory, how much this process may use and how much another one has used
- `processes`: which process a pid means, what it is doing, its descendants, and its end
- `signals`: their names and handlers, and how they are kept away for a moment
- `threads`: locks, forks, waiting, and the order of stores to memory

and `hints`, names for type checkers.
"""

from __future__ import annotations
