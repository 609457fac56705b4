"""What may neither end nor hold up a thread of the pool: errors are told, what may hang is called aside."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def report() -> None:
    """Tell of the exception that is being handled, as of one that ends its thread. Raises nothing.

    Not by logging, which may be what has failed. (The hook keeps silent about SystemExit, as it always does.)
    """
    kind, error, traceback = sys.exc_info()
    assert kind is not None
    told = threading.ExceptHookArgs((kind, error, traceback, threading.current_thread()))
    try:
        threading.excepthook(told)
    except BaseException:  # noqa: BLE001  the hook is the application's, and everybody depends on this thread
        _report_without_hook(told)


def attempt(call: Callable[[], object]) -> None:
    """Call something whose failure must not keep the caller from what comes after it."""
    try:
        call()
    except BaseException:  # noqa: BLE001  whatever it is, it is told
        report()


def call_aside(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    """Call something that may hang in a thread of its own, which is left alone after so many seconds.

    Raises:
        RuntimeError: there can be no further thread.
    """
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(seconds)


def _report_without_hook(told: threading.ExceptHookArgs) -> None:
    """Write the exception to standard error, and then why the application's hook did not."""
    kind, error, traceback = sys.exc_info()
    assert kind is not None
    try:
        threading.__excepthook__(told)
        threading.__excepthook__(
            threading.ExceptHookArgs((kind, error, traceback, threading.current_thread()))
        )
    except Exception:  # noqa: BLE001  standard error is what has failed: there is nowhere left to tell it
        return
