"""The shared objects that were pickled for a task just now: it has to keep their memory until it has ended,
also if the caller drops them at once.

Pickling may run code that sends other tasks. So each note says which call it was pickled in, which is seen by
the frames on the stack: to say it beforehand would cost every task, and hardly any has a shared object.
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

#: What each thread has noted, and in which frame; each deals with its own only. Empty most of the time.
seen_shared: dict[int, list[tuple[int, weakref.ref[Blob]]]] = {}

# By their ids: the hash of a code object goes over all of it. They live as long as their functions, for ever.
_pickling: dict[int, CodeType] = {}


def pickles_for_tasks(function: Callable[P, R]) -> Callable[P, R]:
    """What is pickled in this function is for a task."""
    code = cast("FunctionType", function).__code__
    _pickling[id(code)] = code
    return function


def _pickling_frame(frame: FrameType | None) -> FrameType | None:
    """The innermost call that pickles for a task, this frame or one that called it."""
    while frame is not None and id(frame.f_code) not in _pickling:
        frame = frame.f_back
    return frame


def note_shared(blob: Blob) -> None:
    """A shared object is being pickled by this thread, for a task perhaps."""
    frame = _pickling_frame(sys._getframe(1))
    # Whoever pickles one by himself (`pickle.dumps`) keeps it himself.
    if frame is not None:
        seen_shared.setdefault(threading.get_ident(), []).append((id(frame), weakref.ref(blob)))


def forget_seen_shared() -> None:
    """Forget what was pickled for no task, or for one that could not be sent. Before a task is pickled."""
    if threading.get_ident() in seen_shared and _pickling_frame(sys._getframe(2)) is None:
        del seen_shared[threading.get_ident()]


def take_seen_shared() -> list[Blob]:
    """The files of the shared objects that the task needs which the caller has just pickled; forgets them.

    Of an outer task, in the middle of whose pickling this one is sent, it may keep some as well.
    """
    me = sys._getframe(1)
    mine = seen_shared.pop(threading.get_ident(), [])
    outer: set[int] = set()
    if any(noted != id(me) for noted, _ in mine):
        # Noted when a function was pickled, in a call that is over; or by an outer task, which needs them.
        frame = _pickling_frame(me.f_back)
        while frame is not None:
            outer.add(id(frame))
            frame = _pickling_frame(frame.f_back)
    if outer:
        seen_shared[threading.get_ident()] = [seen for seen in mine if seen[0] != id(me)]
    return [blob for noted, seen in mine if noted not in outer and (blob := seen()) is not None]
