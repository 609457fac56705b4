"""Sending a signal to one very process, never to another that has got its pid."""

from __future__ import annotations

import os
import signal
import sys

from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.signals.interrupts import deferred_interrupts

__all__ = ["may_be_signalled", "send_signal", "send_signal_if_allowed"]


def send_signal(process: ProcessIdentity, signum: int) -> bool:
    """Send a signal to this very process, never to another that has got its pid.

    Returns:
        Whether it was sent; False when the process has ended.

    Raises:
        PermissionError: If it belongs to another user.
    """
    # An interrupt between a descriptor and its use would leave it open.
    with deferred_interrupts():
        if sys.platform == "linux" and hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(process.pid)
            except ProcessLookupError:
                return False
            except OSError:
                return _send_by_pid(process, signum)  # an old kernel, a sandbox, out of descriptors
            try:
                # The descriptor holds on to one process; which one, is looked up now that it cannot change
                # any more.
                if not identity.is_alive(process):
                    return False
                signal.pidfd_send_signal(descriptor, signum)
            except ProcessLookupError:
                return False
            except OSError:
                # It is another user's, which the older call tells, too; or a sandbox knows only that one.
                return _send_by_pid(process, signum)
            finally:
                os.close(descriptor)
            return True
        return _send_by_pid(process, signum)


def _send_by_pid(process: ProcessIdentity, signum: int) -> bool:
    # Between the look and the signal the pid could in theory be handed out again; systems do that late.
    if not identity.is_alive(process):
        return False
    try:
        os.kill(process.pid, signum)
    except OSError:
        # What Windows says of one that has ended meanwhile depends on who else has it open.
        if identity.is_alive(process):
            raise
        return False
    return True


def send_signal_if_allowed(process: ProcessIdentity, signum: int) -> None:
    """Send a signal to this very process, if it lives and belongs to this user."""
    try:
        send_signal(process, signum)
    except PermissionError:
        # A set-uid program of another user: not ours to end.
        return


def may_be_signalled(process: ProcessIdentity) -> bool:
    """Whether it belongs to this user; one that has ended does. Not known on Windows: true.

    (There, 0 is no question but Ctrl-C.)
    """
    if sys.platform == "win32":
        return True
    try:
        send_signal(process, 0)
    except PermissionError:
        return False
    return True
