"""Whether this process is just importing a module (seen by the frames on the stack), and what follows."""

from __future__ import annotations

import _frozen_importlib
import sys
from types import FrameType

from mpkit._wire import codec
from mpkit.errors import PoolBroken

#: The globals of the frames that are on the stack while a module is imported, ...
_IMPORT_SYSTEM = vars(_frozen_importlib)
#: ... and while mpkit unpickles something.
_CODEC = vars(codec)

# The globals of the frames that call the tasks. A search stops there, because in a forked worker the frames
# of its parent are below these.
_worker: dict[str, object] = {}
_generation = 0


def become_worker(namespace: dict[str, object], generation: int) -> None:
    """Note that this process is a worker; `namespace` has the globals of the module that calls the tasks."""
    global _worker, _generation
    _worker, _generation = namespace, generation


def generation() -> int:
    """0 in a program, 1 in the workers of its pools, 2 in the workers of a pool that a worker creates, ..."""
    return _generation


def is_importing(frame: FrameType | None) -> bool:
    """Whether the import system has called this frame of a task, directly or indirectly."""
    while frame is not None and frame.f_globals is not _worker:
        if frame.f_globals is _IMPORT_SYSTEM:
            return True
        frame = frame.f_back
    return False


def refuse_pool_without_end() -> None:
    """Raise if this would lead to pools without end: a module creates a pool when it is imported.

    The workers of that pool import the module as well, because it is needed to unpickle their tasks, and each
    of them creates another pool, and so on. This is refused only in a worker of a pool that a worker has
    created: a program may import such a module in its workers without using the pool there, which does no
    harm. It is not refused if the module is imported by a function that a task calls.

    Raises:
        PoolBroken: A worker's worker is unpickling something, for that imports a module, and the module is
            creating a pool.
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
