"""multiprocessing's resource tracker, which removes names when every process of the application is gone.

It is a process of its own that outlives a SIGKILL. A garbage collection may come while a thread talks to it,
and a ``__del__`` take a name back: that would wait for its own thread for ever (Python 3.10), or be refused
with a warning. So names are taken back through a list, and whoever finds its thread in the middle of a call
leaves it to the next one.

Private is ``multiprocessing.resource_tracker``, which has no public registration, none of several names at
once (`_fd`), and of it the lock with that lock's `_is_owned` and `_at_fork_reinit`: before Python 3.14 a fork
may leave it locked for ever.
"""

from __future__ import annotations

import contextlib
import os
import select
import sys
import weakref
from collections import deque
from collections.abc import Generator, Sequence
from typing import Any, Final, Literal, TypeAlias

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes
from mpkit._platform.stdlib.notes import TrackedType
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import is_free

__all__ = ["Message", "in_one_message", "is_running", "send", "tell", "track", "unregister", "untrack"]

Message: TypeAlias = tuple[Literal["REGISTER", "UNREGISTER"], str, TrackedType]

#: Names that it is still to forget.
_untold: deque[tuple[str, TrackedType]] = deque()
#: How many of them may wait for the end of a block of `in_one_message`: a process that is killed meanwhile
#: has noted them.
_MOST_WAIT = 16
#: So many a pipe takes in one piece (none of mpkit's is longer than 80 bytes).
_MESSAGES_AT_ONCE: Final = getattr(select, "PIPE_BUF", 512) // 80


def track(names: Sequence[str], rtype: TrackedType) -> None:
    """Have these names, which start with a slash, removed when all is over."""
    if any((name, rtype) in _untold for name in names):
        # It knows a name once, however often it is told of it, and complains if it is to forget it twice.
        tell()
    for name in names:
        notes.note(name, rtype)
    send([("REGISTER", name, rtype) for name in names])
    _tell_unless_in_block()


def untrack(name: str, rtype: TrackedType) -> None:
    """Take back `track`: the name has been removed. May be called by a ``__del__`` at any moment."""
    _untold.append((name, rtype))
    _tell_unless_in_block()


def unregister(name: str, rtype: TrackedType) -> None:
    """`untrack`, and the name is forgotten before this returns: for one that is going to be tracked again.

    (Through the list another thread might tell it later, and so of the next use of the name.) Not for a
    ``__del__``.
    """
    send([("UNREGISTER", name, rtype)])


class _Block:
    """One that a thread is in. An interrupt may keep the thread from its end, but not from losing this."""

    __slots__ = ("__weakref__",)


_blocks: set[weakref.ref[_Block]] = set()


@contextlib.contextmanager
def in_one_message() -> Generator[None]:
    """What is untracked in the block, it is told at the end of that."""
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
    """Have it forget what is to be forgotten, unless this thread is just talking to it."""
    if not _untold or _is_talking():
        return
    messages: list[Message] = []
    with contextlib.suppress(IndexError):
        # Several threads may be at it.
        while True:
            messages.append(("UNREGISTER", *_untold.popleft()))
    send(messages)


def send(messages: Sequence[Message]) -> None:
    """Tell it of names that come and go, and note nothing; most use the others.

    multiprocessing wakes it for each of them, twice before Python 3.14, and it wants a core then.
    """
    if sys.platform == "win32" or not messages:
        return
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    start_tracker()
    for begin in range(0, len(messages), _MESSAGES_AT_ONCE):
        some = messages[begin : begin + _MESSAGES_AT_ONCE]
        if not _reaches_it("".join([f"{what}:{name}:{rtype}\n" for what, name, rtype in some])):
            # These start another one.
            ways = {"REGISTER": resource_tracker.register, "UNREGISTER": resource_tracker.unregister}
            for what, name, rtype in some:
                ways[what](name, rtype)


def _reaches_it(text: str) -> bool:
    """Send it that; false if it has died."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    tracker: Any = vars(resource_tracker)["_resource_tracker"]
    # Without its lock, as it does itself before Python 3.14: the handler of a signal could leave that locked.
    descriptor = tracker._fd
    if descriptor is None:
        return False
    try:
        os.write(descriptor, text.encode("ascii"))
    except OSError:
        return False
    return True


def is_running() -> bool:
    """Whether this process has a resource tracker, which its children that were spawned have, too."""
    resource_tracker = sys.modules.get("multiprocessing.resource_tracker")
    return resource_tracker is not None and vars(resource_tracker)["_resource_tracker"]._fd is not None


def _lock() -> Any:  # noqa: ANN401  of a class that the versions do not agree on
    """What it holds while a thread talks to it: an RLock from Python 3.11.6 on, a Lock before."""
    from multiprocessing import resource_tracker  # noqa: PLC0415  POSIX only

    return vars(resource_tracker)["_resource_tracker"]._lock


@in_forked_children
def _free_tracker_lock() -> None:
    # Another thread of the parent may have been talking to it, which does not exist here and never gives the
    # lock back. Python does this itself from 3.14 on.
    module = sys.modules.get("multiprocessing.resource_tracker")
    tracker: Any = None if module is None else vars(module).get("_resource_tracker")
    if tracker is None:
        return
    lock = tracker._lock
    # Where a signal handler has forked in the middle of such a call, this very thread gives it back. (Before
    # 3.11.6 the lock does not know who has it; then the child has a RuntimeError there, and not a hang.)
    if not (hasattr(lock, "_is_owned") and lock._is_owned()):
        lock._at_fork_reinit()


@in_forked_children
def _forget_after_fork() -> None:
    # The parent tells it, and it is the same one: told a second time it complains of a name that it does not
    # know.
    _untold.clear()
    _blocks.clear()


def _is_talking() -> bool:
    if sys.platform == "win32":
        return False
    lock = _lock()
    if hasattr(lock, "_is_owned"):
        return bool(lock._is_owned())
    # Before 3.11.6 the lock does not know who has it: perhaps this thread.
    return not is_free(lock)
