"""Talks to multiprocessing's resource tracker, which removes names when the whole application has ended.

The tracker is a separate process, so it survives a SIGKILL of the others. While a thread talks to it, a
garbage collection may run a ``__del__`` that *untracks* a name. Talking to the tracker there would wait for
its own thread for ever (Python 3.10), or be refused with a warning. So untracked names go into a list; if the
calling thread is in the middle of talking to the tracker, the list is left to the next call.

Private is ``multiprocessing.resource_tracker``, which has no public registration. From it are used: `_fd`, to
send several names at once; and the lock, with its `_is_owned` and `_at_fork_reinit`, because before Python
3.14 a fork may leave it locked for ever.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import select
import sys
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from types import ModuleType
from typing import Any, Final, Literal, TypeAlias

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes
from mpkit._platform.stdlib.notes import TrackedType
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import is_free

Message: TypeAlias = tuple[Literal["REGISTER", "UNREGISTER"], str, TrackedType]

#: Names that were untracked and that the tracker has not been told to forget yet.
_untold: deque[tuple[str, TrackedType]] = deque()
#: How many of them may wait for the end of a block of `in_one_message`. If the process is killed meanwhile,
#: they are in its notes.
_MOST_WAIT = 16
#: How many messages a pipe accepts as one atomic write (messages of mpkit are at most 80 bytes long).
_MESSAGES_AT_ONCE: Final = getattr(select, "PIPE_BUF", 512) // 80


def track(names: Sequence[str], rtype: TrackedType) -> None:
    """Have the tracker remove these names at the end of the application. They start with a slash."""
    if any((name, rtype) in _untold for name in names):
        # The tracker counts a name once, however often it is told of it, and complains if it has to forget it
        # twice. So it has to forget the earlier one first.
        tell()
    for name in names:
        notes.note(name, rtype)
    send([("REGISTER", name, rtype) for name in names])
    _tell_unless_in_block()


def untrack(name: str, rtype: TrackedType) -> None:
    """Undo `track`, because the name has been removed. May be called by a ``__del__`` at any moment."""
    _untold.append((name, rtype))
    _tell_unless_in_block()


def unregister(name: str, rtype: TrackedType) -> None:
    """Undo `track` before this returns, for a name that may be tracked again. Not for use in a ``__del__``.

    (Through the list, another thread might tell the tracker too late, after the next use of the name has
    begun.)
    """
    send([("UNREGISTER", name, rtype)])


class _Block:
    """Stands for a block of `in_one_message` that a thread is in.

    An interrupt may keep the thread from the code at the end of the block, but this object is dropped in any
    case.
    """

    __slots__ = ("__weakref__",)


_blocks: set[weakref.ref[_Block]] = set()


@contextlib.contextmanager
def in_one_message() -> Generator[None]:
    """At the end of this block the tracker is told, in one message, of all names untracked in the block."""
    block = _Block()
    _blocks.add(weakref.ref(block, _blocks.discard))
    try:
        yield
    finally:
        with deferred_interrupts():
            del block
            _tell_unless_in_block()


def _tell_unless_in_block() -> None:
    if not _blocks or len(_untold) >= _MOST_WAIT:
        tell()


def tell() -> None:
    """Tell the tracker to forget the untracked names, unless this thread is just talking to it."""
    if not _untold or _is_talking():
        return
    messages: list[Message] = []
    # IndexError: the list is empty. (Several threads may be emptying it.)
    with contextlib.suppress(IndexError):
        while True:
            messages.append(("UNREGISTER", *_untold.popleft()))
    send(messages)


def send(messages: Sequence[Message]) -> None:
    """Send messages to the tracker, without noting the names; most callers use the other functions.

    multiprocessing itself would wake the tracker for each name (twice before Python 3.14), which takes CPU
    time.
    """
    if sys.platform == "win32" or not messages:
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    start_tracker()
    for begin in range(0, len(messages), _MESSAGES_AT_ONCE):
        some = messages[begin : begin + _MESSAGES_AT_ONCE]
        if not _reaches_it("".join([f"{what}:{name}:{rtype}\n" for what, name, rtype in some])):
            # It has died; these functions start another one.
            ways = {"REGISTER": resource_tracker.register, "UNREGISTER": resource_tracker.unregister}
            for what, name, rtype in some:
                ways[what](name, rtype)


def _reaches_it(text: str) -> bool:
    """Send the text to the tracker, which was started before; False if it has died."""
    # Without its lock (as multiprocessing itself before Python 3.14), because a signal handler could leave
    # that locked.
    descriptor = _tracker()._fd
    if descriptor is None:
        return False
    try:
        os.write(descriptor, text.encode("ascii"))
    except OSError:
        return False
    return True


def is_running() -> bool:
    """Whether this process has a resource tracker, which children that it spawns use, too."""
    tracker = _tracker()
    return tracker is not None and tracker._fd is not None


def _tracker() -> Any:  # noqa: ANN401  of a private class
    """The object through which multiprocessing talks to the tracker; None if it was not loaded so far.

    Its `_lock` is held while a thread talks to the tracker. It is an RLock, before Python 3.11.6 a Lock.
    """
    # Not imported, because a fork hook, which must not import anything, asks for it, too. Not looked up in
    # `sys.modules`, from which a program may have removed it (a tool that reloads modules, say).
    module: ModuleType | None = vars(multiprocessing).get("resource_tracker")
    return None if module is None else vars(module).get("_resource_tracker")


@in_forked_children
def _free_tracker_lock() -> None:
    # A thread of the parent that does not exist here may have held the lock. From 3.14 on Python does this
    # itself.
    tracker = _tracker()
    if tracker is None:
        return
    lock = tracker._lock
    # If a signal handler has forked while its thread held the lock, this thread will release it. (Before
    # 3.11.6 the lock does not know which thread has it. Then the child gets a RuntimeError there, instead of
    # hanging.)
    if not (hasattr(lock, "_is_owned") and lock._is_owned()):
        lock._at_fork_reinit()


@in_forked_children
def _forget_after_fork() -> None:
    # The parent tells the tracker, which is the same one. Told a second time, it would complain of an unknown
    # name.
    _untold.clear()
    _blocks.clear()


def _is_talking() -> bool:
    tracker = _tracker()
    if tracker is None:
        return False
    lock = tracker._lock
    if hasattr(lock, "_is_owned"):
        return bool(lock._is_owned())
    # Before 3.11.6 the lock does not know which thread has it; it may be this one.
    return not is_free(lock)
