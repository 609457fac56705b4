"""The names (of files and semaphores) that this process has created, and when they are removed.

A name is needed only to *open* an object: removing it does not affect processes that already have it open. So
each name has one owner, the process that created it, and is removed

- when the owner drops the object, unless a handle to it has been pickled and not unpickled yet (a child that
  is being started, a task in a queue), or other processes have the object open: then the name *lingers*, and
  is checked again from time to time;
- at the owner's exit, after multiprocessing has joined its children;
- if the owner is killed, by the process that started it, which also becomes the owner of names that are still
  in use (`mpkit._shm.locks.remains`);
- if the whole program is killed, by multiprocessing's resource tracker. The tracker is told of semaphores and
  of files in ``/dev/shm``. A *fall-back* file, one that had to go to the temporary directory, is removed by
  the next mpkit process that creates a file there (`mpkit._shm.memory.sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final, NamedTuple, Protocol

from mpkit._platform.processes import identity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes, sem_lock, tracker
from mpkit._platform.stdlib.exit_hooks import at_exit_after_children_joined
from mpkit._platform.stdlib.notes import TrackedType
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.forks import in_forked_children

#: Where Linux keeps shared memory. The resource tracker can remove files here, and only here.
SHM_DIRECTORY = "/dev/shm"  # noqa: S108  files there are created exclusively and checked when opened

#: The beginning of every file name.
PREFIX = "mpkit-"

#: Pattern (for `re.fullmatch`) of the file name of a segment. Not compiled: most processes never use it, and
#: compiling takes longer than loading this module. Strict, because a file that matches may be removed, and
#: any user can create files there. `kind` is that of `new_name`; pid and start time are the creator's.
SEGMENT_NAME: Final = rf"{PREFIX}(?P<kind>[a-z]+)-(?P<pid>\d{{1,9}})-(?P<started>\d{{1,20}})-[0-9a-f]{{16}}"
#: Pattern of the file that Linux shows for a semaphore (musl omits the "sem." that glibc puts in front).
SEMAPHORE_FILE: Final = rf"(?:sem\.)?{SEGMENT_NAME}-\d+"

#: For how long `sweep` spares a fall-back file that has been handed over. Its name still tells the pid of its
#: creator, which may be dead, and the new owner may not have opened it yet.
_HANDED_OVER_SECONDS = 24 * 3600.0

#: How long a name that may still be needed outlives the owner's object at least, and the interval at which it
#: is checked again. A child process starts in well under a minute.
LINGER_SECONDS = 60.0

#: When more than `_MANY_LINGER` names linger, each new object causes the names of the `_LOOKS` oldest ones to
#: be checked early. Otherwise a program that hands a new queue to each task would accumulate thousands.
_MANY_LINGER = 64
_LOOKS = 2
#: Names that have lingered for less than this are not checked early: a message may be unpickled a second time
#: (a task that is retried).
_LEAST_LINGER_SECONDS = 5.0


class InUse(Protocol):
    """A function that tells whether the names of an object are still needed."""

    def __call__(self, about: str, /, *, under_way: bool = False) -> bool:
        """Whether others have it open or, if `under_way`, a handle to it may be under way to them."""
        ...


def new_name(kind: str) -> str:
    """A new, unique name that contains this process's identity.

    Args:
        kind: a word of lower-case letters (see `SEGMENT_NAME`).
    """
    me = identity.current()
    return f"{PREFIX}{kind}-{me.pid}-{me.started}-{os.urandom(8).hex()}"


def semaphore_name(segment_name: str, number: int) -> str:
    """The name of a semaphore that belongs to a segment."""
    base = os.path.basename(segment_name)
    if sys.platform == "darwin":
        # macOS allows 30 characters.
        _, kind, pid, _, random = base.split("-")
        base = f"{PREFIX}{kind[0]}-{pid}-{random[:10]}"
    return f"/{base}-{number}"


_Lingering = NamedTuple(
    "_Lingering",
    [
        # When to check it again, on the clock of `time.monotonic`.
        ("due", float),
        ("name", str),
        # The object that it belongs to: the argument for `in_use`.
        ("about", str),
        ("in_use", InUse),
    ],
)
"""A name that lingers."""


# No lock guards these: each step takes what it needs by one atomic call of a dict or deque. With a lock, a
# signal handler could make a pool anywhere and wait for threads of it that come here, too, and a garbage
# collection could run a `__del__` here that releases a name: both would wait for their own thread.
_owned: dict[str, TrackedType] = {}
_lingering: deque[_Lingering] = deque()
# The name that belongs to each object, and the objects that have been dropped. The callback of the weak
# reference is C code (`deque.append`), so unlike a `__del__` it cannot be cut short by an interrupt.
_owners: dict[weakref.ref[object], str] = {}
_gone: deque[weakref.ref[object]] = deque()
# The process that has registered the exit hook; a forked child is another one.
_exit_hook_pid = 0


def own(name: str, rtype: TrackedType) -> None:
    """Make this process the owner of `name`, before it is created, so that it is removed at exit or death."""
    own_all([name], rtype)


def own_all(new: Sequence[str], rtype: TrackedType) -> None:
    """Make this process the owner of several names; see `own`."""
    with deferred_interrupts():
        tracked = [_tracker_name(name) for name in new if _is_tracked(name, rtype)]
        if tracked:
            tracker.track(tracked, rtype)
        _record(new, rtype)
    _remove_due()
    if rtype == "shared_memory" and len(_lingering) > _MANY_LINGER:
        remove_unneeded(_LOOKS)


def _record(new: Sequence[str], rtype: TrackedType) -> None:
    global _exit_hook_pid
    _owned.update(dict.fromkeys(new, rtype))
    if _exit_hook_pid != os.getpid():
        _exit_hook_pid = os.getpid()
        at_exit_after_children_joined(_remove_all)


def remove(name: str) -> None:
    """Remove `name` from the system now, if this process owns it. Processes that have it open keep it."""
    if name not in _owned:
        return
    # Deferred, so that the resource tracker hears of the removal exactly once.
    with deferred_interrupts():
        _remove(name)


def _remove(name: str) -> None:
    rtype = _owned.get(name)
    if rtype is None:
        return
    is_tracked = _is_tracked(name, rtype)
    if is_tracked:
        notes.note(_tracker_name(name), rtype)
    # Forgotten only after this: a name that cannot be removed is left to the next call, or to the exit.
    is_gone = _unlink(name, rtype)
    # Two threads may get here, but only one of them tells the tracker. (A name that is still there is left to
    # the tracker.)
    is_first = _owned.pop(name, None) is not None
    if is_first and is_gone and is_tracked:
        tracker.untrack(_tracker_name(name), rtype)


def remove_with(owner: object, name: str) -> None:
    """Remove `name` some time after `owner` has been dropped, if its `__del__` has failed to do so."""
    _owners[weakref.ref(owner, _gone.append)] = name


def hand_over(name: str) -> None:
    """Give up ownership: another process removes `name`. The resource tracker goes on watching it."""
    _owned.pop(name, None)
    if is_fall_back(name):
        until = CLOCK.time() + _HANDED_OVER_SECONDS
        # The receiver may have opened and removed it already.
        with contextlib.suppress(FileNotFoundError):
            os.utime(name, (until, until))


def is_fall_back(name: str) -> bool:
    """Whether a segment of this name is in the temporary directory, which no resource tracker covers."""
    return os.path.dirname(name) != SHM_DIRECTORY


def temporary_directory() -> str:
    """The directory for segments if there is no ``/dev/shm``, or no room in it.

    This is its real path, because the system reports real paths when asked which process has a file open; on
    macOS the temporary directory is behind a symbolic link.

    Raises:
        FileNotFoundError: there is none that this user may write to.
    """
    import tempfile  # noqa: PLC0415  it loads a dozen modules, and most processes only attach

    return os.path.realpath(tempfile.gettempdir())


def directories() -> list[str]:
    """The directories in which there may be segments."""
    found = [SHM_DIRECTORY]
    # OSError: there is no temporary directory (in a read-only container), or no descriptor left to find it.
    with contextlib.suppress(OSError):
        found.append(temporary_directory())
    return list(dict.fromkeys(found))


def let_go(name: str, about: str, in_use: InUse | None) -> None:
    """Remove `name` now, or let it linger while another process may need it. Its object here is gone.

    Args:
        name: the argument of `own`.
        about: the argument for `in_use`.
        in_use: None when nobody needs the name; otherwise the name is kept for `LINGER_SECONDS`, and again
            each time this function returns true.
    """
    if in_use is None:
        remove(name)
    elif name in _owned:
        _lingering.append(_Lingering(CLOCK.monotonic() + LINGER_SECONDS, name, about, in_use))


def remove_unneeded(groups: int | None = None) -> None:
    """Check lingering names before they are due, the oldest first; those that stay become the last ones.

    Args:
        groups: how many objects to check the names of, of those that have lingered for at least
            `_LEAST_LINGER_SECONDS`; None: all objects.
    """
    # Deferred: a name that an interrupt made us drop from the queue would stay until the exit.
    with deferred_interrupts():
        _remove_unneeded(groups)


def _remove_unneeded(groups: int | None) -> None:
    about, stays = "", True
    for _ in range(len(_lingering)):
        try:
            entry = _lingering.popleft()
        except IndexError:
            # Another thread is doing the same.
            return
        # The names of one object are next to each other, and are checked together.
        if entry.about != about:
            if groups is not None:
                since = entry.due - LINGER_SECONDS
                if groups <= 0 or CLOCK.monotonic() < since + _LEAST_LINGER_SECONDS:
                    _lingering.appendleft(entry)
                    return
                groups -= 1
            about = entry.about
            stays = entry.in_use(about, under_way=True)
        if stays:
            _lingering.append(entry)
        else:
            remove(entry.name)


def owned_names() -> list[str]:
    """The names that this process has created and not removed yet."""
    return list(_owned)


def _remove_due() -> None:
    """Check the lingering names that are due, and remove those that belonged to dropped objects."""
    now = CLOCK.monotonic()
    while (entry := _due(now)) is not None:
        let_go(entry.name, entry.about, entry.in_use if entry.in_use(entry.about) else None)
    if _gone:
        with deferred_interrupts():
            _remove_gone()


def _remove_gone() -> None:
    # IndexError: the queue is empty.
    with contextlib.suppress(IndexError):
        while True:
            remove(_owners.pop(_gone.popleft(), ""))


def _due(now: float) -> _Lingering | None:
    """Take the first lingering name out of the queue if it is due."""
    # IndexError: the queue is empty.
    with contextlib.suppress(IndexError):
        if _lingering[0].due > now:
            return None
        entry = _lingering.popleft()
        if entry.due <= now:
            return entry
        # Another thread has taken the entry that was looked at above.
        _lingering.appendleft(entry)
    return None


def _remove_all() -> None:
    _lingering.clear()
    for name in owned_names():
        remove(name)
    tracker.tell()


def _unlink(name: str, rtype: TrackedType) -> bool:
    """Remove a name from the system, and return whether it is gone."""
    try:
        if rtype == "semaphore":
            sem_lock.sem_unlink(name)
        else:
            os.unlink(name)
    except OSError as error:
        # Gone already; or never created, because nothing can be created there (the directory is read-only, or
        # not for this user); or created before this process gave up privileges that the tracker still has.
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        path = f"{SHM_DIRECTORY}/sem.{name[1:]}" if rtype == "semaphore" else name
        return not os.path.lexists(path)
    return True


def _is_tracked(name: str, rtype: TrackedType) -> bool:
    return rtype == "semaphore" or not is_fall_back(name)


def _tracker_name(name: str) -> str:
    return "/" + os.path.basename(name)


@in_forked_children
def _forget_after_fork() -> None:
    global _exit_hook_pid
    # The names belong to the parent.
    _exit_hook_pid = 0
    _owned.clear()
    _lingering.clear()
    _owners.clear()
    _gone.clear()
