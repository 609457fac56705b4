"""How a process is ended together with all its descendants, step by step."""

from __future__ import annotations

import signal
import sys
from typing import Final

from mpkit._platform.parent_death import parent_watch
from mpkit._platform.processes import exits, families, family_tree, identity, signalling
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit.process.handle import Handle

__all__ = ["end_family"]

# How long those are waited for that have been killed; only a process inside the kernel can take that long.
_KILL_PATIENCE_S: Final = 10.0


def end_family(root: ProcessIdentity, grace: float | None, handle: Handle, *, interrupted: bool) -> None:
    """Interrupt (unless it has been), terminate and kill a process with all its descendants."""
    steps: tuple[int | None, ...] = (None if interrupted else signal.SIGINT, signal.SIGTERM)
    if sys.platform == "win32":
        steps = (signal.SIGTERM,)
    family = [root]
    for signum in steps if grace != 0 else ():
        if signum is not None:
            parent_watch.signal_to_end(family, signum)
        family = families.wait_families_gone(family, grace)
        # Those that it started last may be known to itself alone.
        known = set(family)
        family += [other for other in handle.survivors() if other not in known and identity.is_alive(other)]
        if not family:
            return
    handle.killed = True
    family = family_tree.with_descendants(family)
    families.kill_families(family)
    # Our caller waits for the root. One of another user goes on, whatever we do.
    others = [process for process in family if process != root]
    exits.wait_gone(filter(signalling.may_be_signalled, others), _KILL_PATIENCE_S)
