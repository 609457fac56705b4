"""Signals: their names and handlers, and how they are kept away for a moment.

- `names`: their names, and the one that ends a process
- `signal_handlers`: the handlers of this process, as C functions
- `interrupts`: keeping Ctrl-C away for a moment
- `deferred_handlers`: keeping the handlers of other signals out of a fork
- `handlers_at_work`: whether another process is still inside the handler of one
"""

from __future__ import annotations
