"""The C functions that get and set signal handlers, and list the valid signals.

``_signal`` is private, like what `mpkit._platform.stdlib` uses. The functions of `signal` convert numbers to
enumerations, which costs ten times as much as the system call (11 microseconds for deferring interrupts once,
on Python 3.10).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    import signal as _signal
else:
    import _signal

get_signal_handler: Callable[[int], object] = _signal.getsignal
set_signal_handler: Callable[[int, object], object] = cast("Any", _signal.signal)
valid_signals: Callable[[], set[int]] = cast("Any", _signal.valid_signals)
