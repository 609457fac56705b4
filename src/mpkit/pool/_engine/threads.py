"""The threads of a pool: how they are made and joined, and how they are kept going.

Exceptions are reported, and what may hang is called in another thread.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable


def new_thread(run: Callable[[], object], name: str) -> threading.Thread:
    """A thread of the pool, which has not been started yet.

    A daemon thread, because the interpreter joins all others before any exit handler of the pool could stop
    them. The end of the pool joins it.
    """
    return threading.Thread(target=run, name=name, daemon=True)


def join_thread(thread: threading.Thread, timeout: float | None) -> bool:
    """Wait for a thread, `timeout` seconds at most; True if it has ended, or if it is this one."""
    if thread is threading.current_thread():
        return True
    thread.join(timeout)
    return not thread.is_alive()


def report() -> None:
    """Report the exception that is being handled with `threading.excepthook`. Raises nothing.

    Not with `logging`, because that may be what has failed. (The hook ignores SystemExit, as always.)
    """
    kind, error, traceback = sys.exc_info()
    assert kind is not None
    told = threading.ExceptHookArgs((kind, error, traceback, threading.current_thread()))
    try:
        threading.excepthook(told)
    except BaseException:  # noqa: BLE001  the hook is the application's, and the pool depends on this thread
        _report_without_hook(told)


def attempt(call: Callable[[], object]) -> None:
    """Call something; if it raises an exception, report that and go on."""
    try:
        call()
    except BaseException:  # noqa: BLE001  whatever it is, it is reported
        report()


def call_aside(seconds: float, function: Callable[..., object], *arguments: object) -> None:
    """Call something that may hang in a new thread, and wait for it for so many seconds at most.

    Raises:
        RuntimeError: no thread can be started.
    """
    thread = threading.Thread(target=function, args=arguments, daemon=True)
    thread.start()
    thread.join(seconds)


def _report_without_hook(told: threading.ExceptHookArgs) -> None:
    """Write the exception to standard error, followed by that of the application's hook."""
    kind, error, traceback = sys.exc_info()
    assert kind is not None
    try:
        threading.__excepthook__(told)
        threading.__excepthook__(
            threading.ExceptHookArgs((kind, error, traceback, threading.current_thread()))
        )
    except Exception:  # noqa: BLE001  standard error has failed: there is nowhere left to report it
        return
