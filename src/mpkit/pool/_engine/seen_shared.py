"""Which shared objects have been pickled for a task: it must keep their memory until it has ended, even if
the caller drops them at once.

Pickling may run code that submits other tasks. So for each shared object it is noted which call (of a
function marked with `pickles_for_tasks`) was pickling. That call is found by its frame on the stack:
announcing each call beforehand would cost something for every task, and hardly any task has a shared object.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from types import CodeType, FrameType, FunctionType
from typing import ParamSpec, TypeVar, cast

from mpkit._shm.memory.blob import Blob

P = ParamSpec("P")
R = TypeVar("R")

#: What each thread has noted: the id of the frame of the call, and the file. By thread; each thread uses only
#: its own entry. Empty most of the time.
seen_shared: dict[int, list[tuple[int, weakref.ref[Blob]]]] = {}

# The code of the marked functions, by id, because hashing a code object means hashing all of it. (The ids
# stay valid: module-level functions live for ever.)
_pickling: dict[int, CodeType] = {}


def pickles_for_tasks(function: Callable[P, R]) -> Callable[P, R]:
    """Decorator: what this function pickles is for a task."""
    code = cast("FunctionType", function).__code__
    _pickling[id(code)] = code
    return function


def _pickling_frame(frame: FrameType | None) -> FrameType | None:
    """The frame of the innermost call of a marked function: this frame, or one that called it."""
    while frame is not None and id(frame.f_code) not in _pickling:
        frame = frame.f_back
    return frame


def note_shared(blob: Blob) -> None:
    """Note that this thread is pickling a shared object, if it does so for a task."""
    frame = _pickling_frame(sys._getframe(1))
    # A program that pickles one itself (with `pickle.dumps`) has to keep it alive itself.
    if frame is not None:
        seen_shared.setdefault(threading.get_ident(), []).append((id(frame), weakref.ref(blob)))


def forget_seen_shared() -> None:
    """Forget what was pickled for a task that could not be sent. To be called before a task is pickled.

    Does nothing while an outer task is being pickled.
    """
    if threading.get_ident() in seen_shared and _pickling_frame(sys._getframe(2)) is None:
        del seen_shared[threading.get_ident()]


def take_seen_shared() -> list[Blob]:
    """Take the files of the shared objects that are needed by the task which the caller has just pickled.

    If this task is sent in the middle of pickling another one, it may also keep
    some files of that outer task.
    """
    me = sys._getframe(1)
    mine = seen_shared.pop(threading.get_ident(), [])
    outer: set[int] = set()
    if any(noted != id(me) for noted, _ in mine):
        # The others were noted either by a call that has returned (`FunctionTable.look_up`, for this task),
        # or by an outer call that is still pickling, and needs them itself.
        frame = _pickling_frame(me.f_back)
        while frame is not None:
            outer.add(id(frame))
            frame = _pickling_frame(frame.f_back)
    if outer:
        seen_shared[threading.get_ident()] = [seen for seen in mine if seen[0] != id(me)]
    return [blob for noted, seen in mine if noted not in outer and (blob := seen()) is not None]
