"""Signals: their names and handlers, and deferring them for a moment.

- `names`: the names of signals, and the signal that ends a process
- `signal_handlers`: the C functions that get and set signal handlers
- `interrupts`: deferring Ctrl-C for a moment
- `deferred_handlers`: deferring the handlers of other signals during a fork
- `handlers_at_work`: whether another process is still inside a signal handler
- `sigpipe`: writing to a pipe whose reader may be gone
"""

from __future__ import annotations
