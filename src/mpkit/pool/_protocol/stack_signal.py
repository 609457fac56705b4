"""The signal that makes a worker write its Python stack into its pipe."""

from __future__ import annotations

import signal
import sys

if sys.platform == "linux":
    #: A real-time signal, because SIGUSR1 and SIGUSR2 belong to the application.
    STACK_SIGNAL: int | None = signal.SIGRTMAX - 5
elif sys.platform == "win32":
    STACK_SIGNAL: int | None = None
else:
    STACK_SIGNAL: int | None = signal.SIGUSR2
