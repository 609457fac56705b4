"""What depends on whether this process is just importing a module; seen by the frames on the stack."""

from __future__ import annotations

import _frozen_importlib
import sys
from types import FrameType

from mpkit._wire import codec

#: The namespaces of the modules whose frames are on the stack while a module is imported, and while mpkit
#: unpickles something.
_IMPORT_SYSTEM = vars(_frozen_importlib)
_CODEC = vars(codec)

_is_worker = False


def become_worker() -> None:
    """This process is a worker of a pool."""
    global _is_worker
    _is_worker = True


def is_importing(frame: FrameType | None) -> bool:
    """Whether this frame, or one that called it, is the import system's."""
    while frame is not None:
        if frame.f_globals is _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def refuse_pool_without_end() -> None:
    """Raise if a pool is about to be made by a module that a worker imports because of what it unpickles.

    The workers of that pool would import the module, too, as soon as they got work from it, and each would
    make another pool. (In a function that a task calls a pool may be made, also if that imports the module.)

    Raises:
        RuntimeError: That is so.
    """
    if not _is_worker:
        return
    module = ""
    importing = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_globals is _IMPORT_SYSTEM:
            importing = True
        elif frame.f_globals is _CODEC and importing:
            raise RuntimeError(
                f"module {module!r} makes a pool when it is imported, and this worker of a pool imports "
                "it for a task: the new pool's workers would import it as well and make pools of their own, "
                'without end. Make the pool in a function, or under `if __name__ == "__main__":`'
            )
        elif not importing and frame.f_code.co_name == "<module>":
            module = str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
