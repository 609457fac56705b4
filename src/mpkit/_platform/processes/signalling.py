"""Sending a signal to exactly one process, never to another one that has got the same pid."""

from __future__ import annotations

import os
import signal
import sys

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts


def send_signal(process: ProcessIdentity, signum: int) -> bool:
    """Send a signal to this process, never to another one that has got the same pid.

    Returns:
        Whether it was sent; False if the process has ended.

    Raises:
        PermissionError: If it belongs to another user.
    """
    # Deferred, because an interrupt after opening a descriptor would leave it open.
    with deferred_interrupts():
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return False
            except OSError:
                return _send_by_pid(process, signum)  # an old kernel, a sandbox, out of descriptors
            try:
                # The descriptor refers to one process for good. So now it can be checked which one that is.
                if not identity.is_alive(process):
                    return False
                signal.pidfd_send_signal(descriptor, signum)
            except ProcessLookupError:
                return False
            except OSError:
                # It is another user's, and the older call says so, too; or a sandbox knows only that one.
                return _send_by_pid(process, signum)
            finally:
                os.close(descriptor)
            return True
        return _send_by_pid(process, signum)


def _send_by_pid(process: ProcessIdentity, signum: int) -> bool:
    # In theory the pid could be reused between this check and the signal, but systems do not reuse pids so
    # soon.
    if not identity.is_alive(process):
        return False
    try:
        os.kill(process.pid, signum)
    except OSError:
        # The error that Windows raises for a process that has ended depends on whether others have it open.
        if identity.is_alive(process):
            raise
        return False
    return True


def send_signal_if_allowed(process: ProcessIdentity, signum: int) -> None:
    """Send a signal to this process, if it is alive and belongs to this user."""
    try:
        send_signal(process, signum)
    except PermissionError:
        # It belongs to another user (a set-uid program, say).
        return


def may_be_signalled(process: ProcessIdentity) -> bool:
    """Whether this process may be signalled, that is, it belongs to this user. True if it has ended.

    Always true on Windows, where this cannot be found out (the signal 0 means Ctrl-C there).
    """
    if sys.platform == "win32":
        return True
    try:
        send_signal(process, 0)
    except PermissionError:
        return False
    return True
