"""Ends a process together with all its descendants, step by step."""

from __future__ import annotations

import signal
import sys
from typing import Final

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import exits, families, family_tree, identity, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.process.handle import Handle

__all__ = ["end_family"]

# How long to wait for descendants that have been killed. Only a process inside the kernel can take that long.
_KILL_PATIENCE_SECONDS: Final = 10.0


def end_family(root: ProcessIdentity, grace: float | None, handle: Handle, *, interrupted: bool) -> None:
    """Interrupt, then terminate, then kill a process with all its descendants.

    Args:
        root: The process.
        grace: How many seconds to wait after the interrupt, and again after the terminate; 0: kill at once;
            None: wait without limit.
        handle: The state of that process.
        interrupted: Whether all of them have been interrupted already (by Ctrl-C), so that they are only
            waited for.

    Blocking: for the grace periods, and until killed descendants have ended (10 s at most). The root itself
    may still be about to end.
    """
    steps: tuple[int | None, ...] = (None if interrupted else signal.SIGINT, signal.SIGTERM)
    if sys.platform == "win32":
        steps = (signal.SIGTERM,)
    family = [root]
    for signum in steps if grace != 0 else ():
        if signum is not None:
            parent_watch.signal_to_end(family, signum)
        family = families.wait_families_gone(family, grace)
        # The root may have started descendants just before it ended; only its report tells which.
        known = set(family)
        family += [other for other in handle.survivors() if other not in known and identity.is_alive(other)]
        if not family:
            return
    handle.killed = True
    family = family_tree.with_descendants(family)
    families.kill_families(family)
    # The caller waits for the root. A process of another user cannot be killed, so it is not waited for.
    others = [process for process in family if process != root]
    exits.wait_gone(filter(signalling.may_be_signalled, others), _KILL_PATIENCE_SECONDS)
