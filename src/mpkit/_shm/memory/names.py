"""The names that this process has created in the system, and when they are removed.

A name (a file or a semaphore) is needed only to *open* a thing: removing it hurts nobody who has it open. So
each name has one owner, the process that created it, and is removed

- when the owner's object is dropped, unless a handle to it has been pickled and not unpickled yet (a child
  that is being started, a task in a queue), or other processes have the thing open: then it stays, and this
  is looked at again from time to time;
- at the owner's exit, after multiprocessing has joined its children;
- if the owner is killed, by the process that started it, which owns what others still use from then on
  (`mpkit._shm.locks.remains`);
- by multiprocessing's resource tracker, if the whole program is killed. The tracker knows semaphores and what
  lies in ``/dev/shm``; a file that had to go to the temporary directory is removed by the next process of
  mpkit that puts one there (`mpkit._shm.memory.sweep`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Final, Literal, Protocol, TypeAlias

from mpkit._platform.processes import identity
from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib import notes, sem_lock, tracker
from mpkit._platform.stdlib.exit_hooks import at_exit_after_children_joined
from mpkit._platform.stdlib.notes import TrackedType
from mpkit._platform.threads.clock import CLOCK
from mpkit._platform.threads.forks import in_forked_children

#: Where Linux keeps shared memory; what lies there the resource tracker can remove.
SHM_DIRECTORY = "/dev/shm"  # noqa: S108  files there are created exclusively and checked when opened

#: What the names of all files begin with.
PREFIX = "mpkit-"

#: The file of a segment, as a pattern for `re.fullmatch`: most processes never ask, and to compile it takes
#: longer than to load this module. Strict, because what matches may be removed, and anybody may give a name.
#: The kind is what `new_name` was told; pid and start time are those of the creator.
SEGMENT_NAME: Final = rf"{PREFIX}(?P<kind>[a-z]+)-(?P<pid>\d{{1,9}})-(?P<started>\d{{1,20}})-[0-9a-f]{{16}}"
#: The file that Linux shows for a semaphore (with musl as its C library, without the beginning).
SEMAPHORE_FILE: Final = rf"(?:sem\.)?{SEGMENT_NAME}-\d+"

#: For how long a fall-back file that has been handed over is left alone, whoever is alive: it is named after
#: the process that made it, and the one it belongs to now may not have opened it yet.
HANDED_OVER_SECONDS = 24 * 3600.0

NameType = Literal["segment", "semaphore"]

#: How long a name that may be needed outlives the owner's object at least, and how often that is looked at
#: again. A child process starts in well under a minute.
LINGER_SECONDS = 60.0

#: When more names than that linger, those of two objects are looked at whenever a new one is made: a program
#: that hands a new queue to each task would have thousands.
_MANY_LINGER = 64
_LOOKS = 2
#: But none before so many seconds: a message may be unpickled a second time (a task that is tried again).
_LEAST_LINGER_SECONDS = 5.0


class InUse(Protocol):
    """Tells whether the names of a thing are still needed."""

    def __call__(self, about: str, /, *, under_way: bool = False) -> bool:
        """Whether others have it open or, if `under_way`, a handle to it may be under way to them."""
        ...


def new_name(kind: str) -> str:
    """A name of this process's own that no other file has; `kind` is a word without "-"."""
    me = identity.current()
    return f"{PREFIX}{kind}-{me.pid}-{me.started}-{os.urandom(8).hex()}"


def semaphore_name(segment_name: str, number: int) -> str:
    """The name of a semaphore that belongs to a segment."""
    base = os.path.basename(segment_name)
    if sys.platform == "darwin":
        # There 30 characters are allowed.
        _, kind, pid, _, random = base.split("-")
        base = f"{PREFIX}{kind[0]}-{pid}-{random[:10]}"
    return f"/{base}-{number}"


_Lingering: TypeAlias = "tuple[float, str, str, InUse]"

_owned: dict[str, NameType] = {}
_lingering: deque[_Lingering] = deque()
# Whose name is whose, and those of them that have gone. What puts them there is C code: an interrupt that
# comes in a `__del__`, before it has done anything, cannot keep it from that.
_owners: dict[weakref.ref[object], str] = {}
_gone: deque[weakref.ref[object]] = deque()
# No lock: each step takes what it needs in one go. A signal handler may come anywhere, make a pool, and wait
# for threads of that which come here, too; and a garbage collection with a `__del__` that lets a name go.
_exit_hook_pid = 0


def own(name: str, kind: NameType) -> None:
    """Record that this process creates `name`, and see to its removal at exit or death."""
    own_all([name], kind)


def own_all(new: Sequence[str], kind: NameType) -> None:
    """The same for several names."""
    with deferred_interrupts():
        tracked = [_tracker_name(name) for name in new if _tracked(name, kind)]
        if tracked:
            tracker.track(tracked, _tracker_type(kind))
        _record(new, kind)
    _sweep()
    if kind == "segment" and len(_lingering) > _MANY_LINGER:
        remove_unneeded(_LOOKS)


def _record(new: Sequence[str], kind: NameType) -> None:
    global _exit_hook_pid
    _owned.update(dict.fromkeys(new, kind))
    if _exit_hook_pid != os.getpid():
        _exit_hook_pid = os.getpid()
        at_exit_after_children_joined(_remove_all)


def remove(name: str) -> None:
    """Remove `name` from the system now, if this process owns it. Those who have it open keep it."""
    if name not in _owned:
        return
    # The resource tracker is told of each name once, and once that it is gone.
    with deferred_interrupts():
        _remove(name)


def _remove(name: str) -> None:
    kind = _owned.get(name)
    if kind is None:
        return
    tracked = _tracked(name, kind)
    if tracked:
        notes.note(_tracker_name(name), _tracker_type(kind))
    # Only then is it forgotten: what cannot be removed is left to the next call, or to the exit.
    is_gone = _unlink(name, kind)
    # Two threads may come so far; one of them tells the tracker. (What is not gone is left to that.)
    is_first = _owned.pop(name, None) is not None
    if is_first and is_gone and tracked:
        tracker.untrack(_tracker_name(name), _tracker_type(kind))


def belongs_to(owner: object, name: str) -> None:
    """Remove `name` some time after `owner` has gone, should it have failed to do so itself."""
    _owners[weakref.ref(owner, _gone.append)] = name


def hand_over(name: str) -> None:
    """Another process owns `name` from now on, and removes it; the resource tracker goes on watching it."""
    _owned.pop(name, None)
    if is_fall_back(name):
        until = CLOCK.time() + HANDED_OVER_SECONDS
        # Gone already: taken, and removed.
        with contextlib.suppress(FileNotFoundError):
            os.utime(name, (until, until))


def is_fall_back(name: str) -> bool:
    """Whether a segment of this name lies in the temporary directory, where no resource tracker looks."""
    return os.path.dirname(name) != SHM_DIRECTORY


def temporary_directory() -> str:
    """Where a segment lies for which there is no room, or no such directory, in shared memory.

    By its real name, as the system tells it to those who ask who has the file open: on macOS it lies behind a
    link.

    Raises:
        FileNotFoundError: there is none that this user may write to.
    """
    import tempfile  # noqa: PLC0415  it loads a dozen modules, and most processes only attach

    return os.path.realpath(tempfile.gettempdir())


def let_go(name: str, about: str, in_use: InUse | None) -> None:
    """The owner's object is gone: remove `name` now, or later when somebody may still need it.

    Args:
        name: what `own` was told.
        about: what `in_use` is asked about.
        in_use: None when nobody needs the name; else it is kept for `LINGER_SECONDS`, and again as long as
            this function says that others have the thing open.
    """
    if in_use is None:
        remove(name)
    elif name in _owned:
        _lingering.append((CLOCK.monotonic() + LINGER_SECONDS, name, about, in_use))


def remove_unneeded(groups: int | None = None) -> None:
    """Look before their time at names that outlive their objects, the oldest first.

    Args:
        groups: at the names of so many objects, which have lingered for a few seconds; None: at all there
            are. They come last then, if they stay.
    """
    # An interrupt in between would leave a name until the exit.
    with deferred_interrupts():
        _remove_unneeded(groups)


def _remove_unneeded(groups: int | None) -> None:
    about, stays = "", True
    for _ in range(len(_lingering)):
        try:
            entry = _lingering.popleft()
        except IndexError:
            # Another thread is at it, too.
            return
        if entry[2] != about:
            if groups is not None:
                since = entry[0] - LINGER_SECONDS
                if groups <= 0 or CLOCK.monotonic() < since + _LEAST_LINGER_SECONDS:
                    _lingering.appendleft(entry)
                    return
                groups -= 1
            _, _, about, in_use = entry
            stays = in_use(about, under_way=True)
        if stays:
            _lingering.append(entry)
        else:
            remove(entry[1])


def owned_names() -> list[str]:
    """The names that this process has created and not removed yet."""
    return list(_owned)


def _sweep() -> None:
    now = CLOCK.monotonic()
    while (due := _due(now)) is not None:
        _, name, about, in_use = due
        let_go(name, about, in_use if in_use(about) else None)
    if _gone:
        with deferred_interrupts():
            _remove_gone()


def _remove_gone() -> None:
    # IndexError: there is none, or no more.
    with contextlib.suppress(IndexError):
        while True:
            remove(_owners.pop(_gone.popleft(), ""))


def _due(now: float) -> _Lingering | None:
    # IndexError: there is none, or no more.
    with contextlib.suppress(IndexError):
        if _lingering[0][0] > now:
            return None
        entry = _lingering.popleft()
        if entry[0] <= now:
            return entry
        # Another thread has taken the one that was the first.
        _lingering.appendleft(entry)
    return None


def _remove_all() -> None:
    _lingering.clear()
    for name in owned_names():
        remove(name)
    tracker.tell()


def _unlink(name: str, kind: NameType) -> bool:
    """Remove it; whether it is gone."""
    try:
        if kind == "semaphore":
            sem_lock.sem_unlink(name)
        else:
            os.unlink(name)
    except OSError as error:
        # Gone already; or never made, because nothing can be made there (read-only, or not for this user); or
        # made before this process gave up its privileges, which the tracker still has.
        if error.errno not in (errno.ENOENT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        path = f"{SHM_DIRECTORY}/sem.{name[1:]}" if kind == "semaphore" else name
        return not os.path.lexists(path)
    return True


def _tracked(name: str, kind: NameType) -> bool:
    return os.name == "posix" and (kind == "semaphore" or not is_fall_back(name))


def _tracker_name(name: str) -> str:
    return "/" + os.path.basename(name)


def _tracker_type(kind: NameType) -> TrackedType:
    return "semaphore" if kind == "semaphore" else "shared_memory"


@in_forked_children
def _forget_after_fork() -> None:
    global _exit_hook_pid
    # The names belong to the parent.
    _exit_hook_pid = 0
    _owned.clear()
    _lingering.clear()
    _owners.clear()
    _gone.clear()
