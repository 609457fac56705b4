"""What depends on whether this process is just importing a module; seen by the frames on the stack."""

from __future__ import annotations

import _frozen_importlib
import sys
from types import FrameType

from mpkit._wire import codec
from mpkit.errors import PoolBroken

#: The namespaces of the modules whose frames are on the stack while a module is imported, and while mpkit
#: unpickles something.
_IMPORT_SYSTEM = vars(_frozen_importlib)
_CODEC = vars(codec)

# The namespace of the worker's own module, whose frames call the tasks. In a forked worker the frames of its
# parent lie below them.
_worker: dict[str, object] = {}
_generation = 0


def become_worker(namespace: dict[str, object], generation: int) -> None:
    """This process is a worker of a pool; `namespace` is that of the module that calls the tasks."""
    global _worker, _generation
    _worker, _generation = namespace, generation


def generation() -> int:
    """0 in a program, 1 in a worker of its pools, 2 in a worker of a worker's pool, and so on."""
    return _generation


def is_importing(frame: FrameType | None) -> bool:
    """Whether this frame of a task, or one that called it, is the import system's."""
    while frame is not None and frame.f_globals is not _worker:
        if frame.f_globals is _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def refuse_pool_without_end() -> None:
    """Raise if a pool is about to be made by a module that a worker's worker imports because of what it
    unpickles.

    If that module uses the pool at once, the workers of that pool import the module, too, and each makes
    another pool. A program may do the first step of that without knowing, and one that does not use the pool
    in a worker comes to no harm; here it would go on without end. (In a function that a task calls a pool may
    be made, also if that imports the module.)

    Raises:
        PoolBroken: That is so.
    """
    if _generation < 2:
        return
    module = ""
    importing = False
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals is not _worker:
        if frame.f_globals is _IMPORT_SYSTEM:
            importing = True
        elif frame.f_globals is _CODEC and importing:
            raise PoolBroken(
                f"module {module!r} makes a pool when it is imported, and the workers of that pool import it "
                "for their tasks and make pools of their own, and so on without end. Make the pool in a "
                'function, or under `if __name__ == "__main__":`'
            )
        elif not importing and frame.f_code.co_name == "<module>":
            module = str(frame.f_globals.get("__name__", ""))
        frame = frame.f_back
