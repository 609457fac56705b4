"""What a worker and its parent share: one mapped file with a status row and two rings, and two semaphores.

Nothing here is shared by two workers, so a worker that dies, at whatever instruction, cannot hurt another
one.

The words of the status row, and who writes them:

- ``STATE`` (worker): how far it has come: 0 (it is starting), `INITIALIZING` ... `LEAVING`.
- ``TASK`` (worker): the task in its hands (0: none): stored before the inbox lets go of the record, cleared
  after the outcome is in the outbox.
- ``STARTED`` (worker): when that task began (`time.monotonic_ns`, the same clock in all processes).
- ``DONE`` (worker): tasks finished.
- ``PID``, ``POOL``, ``STACK_PIPE`` (worker), for those who look from outside: its process id; the random part
  of the board's name; its descriptor of the pipe that it writes its stack into, plus 1 (0: none).
- ``ITEM`` (worker): of a chunk: from which item on, and up to which, something is under way that may be the
  worker's death: ``first << 32 | end``, 0 before the first item. One store, so never half a truth.
- ``PARCELS`` (worker), once it is `LEAVING`: how many parcels it has made.
- ``STOP`` (parent): the task that an interrupt (SIGINT) is meant for; the worker ignores any other interrupt.
- ``LOW`` (parent): ring the parent once no more than ``LOW - 1`` tasks are left in the inbox (0: do not).
- ``SLEEPING`` (worker): it is going to sleep on `wake`, or does, until there is a record in the inbox
  (`SLEEPS_FOR_RECORDS`) or room in the outbox (`SLEEPS_FOR_ROOM`); 0: it does not sleep. The parent clears it
  and releases `wake` once.

The rings:

- inbox (written by the parent): tasks to come. The getter's end belongs to whoever holds `lock`: the worker
  for one record, the parent when it takes tasks back.
- outbox (written by the worker): outcomes and log records.

No wake-up is lost: the worker stores ``SLEEPING`` and then looks at the inbox again, the parent publishes a
record and then looks at ``SLEEPING``, and between store and look each of them passes a full barrier. All
waits are sliced nevertheless.

The **board** is one page for the whole pool. The parent writes it; a worker only clears ``FRONT`` or ``BACK``
before it rings that bell.
"""

from __future__ import annotations

import contextlib
import functools
import struct
import threading
from collections.abc import Callable

from mpkit._platform.hints import override
from mpkit._platform.stdlib import tracker
from mpkit._shm.memory import trail
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import MAX_VALUE, Semaphore
from mpkit._shm.queues.ring import Ring

# -- words of the status row; what different processes write lies on different cache lines -------------------

STATE = 0
TASK = 1
STARTED = 2
DONE = 3
SLEEPING = 4
PID = 5
STACK_PIPE = 6
POOL = 7
STOP = 8
LOW = 9
IN_HEAD = 16
ITEM = 17
PARCELS = 18
IN_TAIL = 24
OUT_HEAD = 32
OUT_TAIL = 40
#: Behind the trail (see `mpkit._shm.memory.trail`).
RINGS = trail.END

# -- STATE ---------------------------------------------------------------------------------------------------

#: 0, which is what is there before the worker writes anything: it is starting.
INITIALIZING = 1
READY = 2
LEAVING = 3

_STATE_NAMES = {INITIALIZING: "initializing", READY: "idle", LEAVING: "leaving"}


def state_name(state: int, task: int) -> str:
    """What people call that state of a worker that has this task in its hands (0: none)."""
    return "running" if task and state == READY else _STATE_NAMES.get(state, "starting")


# -- SLEEPING ------------------------------------------------------------------------------------------------

SLEEPS_FOR_RECORDS = 1
SLEEPS_FOR_ROOM = 2

# -- the board -----------------------------------------------------------------------------------------------

#: A thread of the parent sleeps at the front bell.
FRONT = 0
#: The task that it waits for, or `ANY`, `SOON` or `NOT_NOW`.
WANTED = 1
#: The collector sleeps at the back bell, and when to ring it: `AWAKE` ... `ALWAYS`.
BACK = 8
#: Not 0: log records wait in the parent for its handlers, so many that a worker which logs has to slow down.
LOGS_LATE = 9
#: Where its name begins, in bytes: the length, then UTF-8. For those who look from outside.
NAME_AT = 128
_LONGEST_NAME = 255

#: Every outcome counts, at once.
ANY = 0
#: Every outcome counts, but while a worker has more to do it need not say so more than once in a millisecond.
SOON = (1 << 64) - 1

#: No outcome counts, only that an inbox runs low or an outbox fills: it wakes by itself in a moment.
NOT_NOW = (1 << 64) - 2

#: It does not sleep.
AWAKE = 0
#: When the outbox fills.
WHEN_FULL = 1
#: Also when the inbox runs low.
WHEN_LOW = 2
#: Also for every outcome, as with `SOON`.
ALWAYS = 3

# -- records -------------------------------------------------------------------------------------------------

#: A task: its number, the length of the pickled function that follows, flags. After the function: the
#: arguments.
TASK_HEAD = struct.Struct("<QIH2x")
#: An outcome: the number of its task, how long it ran in nanoseconds, the kind. Then the data.
RESULT_HEAD = struct.Struct("<QIB3x")
#: Which items of a chunk are meant: from the first one to before the second one.
RANGE = struct.Struct("<II")
HEAD_SIZE = 16

# Flags of a task.
#: The arguments are ``(args, kwargs)``; without it ``args`` alone.
KEYWORDS = 1
#: The arguments lie in a segment of their own; the record names it.
BIG = 2
#: A chunk of a map: the arguments are a list of items, and before them stands a `RANGE`.
CHUNK = 4
#: Each item of the chunk is a tuple of arguments.
STAR = 8
#: The function was pickled by reference: the worker may keep it.
BY_REFERENCE = 16
#: Use cloudpickle for the outcome.
BY_VALUE = 32
#: The function is too big for a record: the arguments are ``(pickled function, arguments)``.
FUNCTION_INSIDE = 64
#: Not a task: finish what came before, then leave.
LEAVE = 128
#: Of a chunk: the result of each item is handed in before the next one begins, as if each were a task.
EACH = 256

# Kinds of an outcome. Those of a task that has ended come first.
NONE = 0
VALUE = 1
ERROR = 2
BIG_VALUE = 3
BIG_ERROR = 4
LAST_RESULT = BIG_ERROR
#: Never on the wire: the outcome is an exception object made in the parent.
RAISED = 5
#: Never on the wire: the outcome is a value made in the parent.
PLAIN = 6
#: Some results of a chunk that goes on; instead of the run time the head has the index of the next item.
PART = 8
BIG_PART = 9
LOG = 16
HELLO = 17
BAD_INITIALIZER = 18
#: It takes no more tasks, and ends as soon as nothing in it goes on.
GOODBYE = 19

_INBOX_BYTES = 64 << 10
_OUTBOX_BYTES = 128 << 10

#: What a worker leaves at.
LEAVE_RECORD = TASK_HEAD.pack(0, 0, LEAVE)

#: The longest record of a task: it must fit into an empty inbox wherever the index stands, in the middle too.
LONGEST_TASK = ((_INBOX_BYTES >> 4) - 1) << 3


class Channel:
    """One worker's channel, seen from either side.

    A worker that is forked has it as its parent made it; pickled, it is opened by its names.
    """

    __slots__ = ("inbox", "lock", "outbox", "segment", "wake", "words")

    def __init__(self, segment: Segment, lock: Semaphore, wake: Semaphore) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self.lock: Semaphore = lock
        self.wake: Semaphore = wake
        inbox_words = _INBOX_BYTES >> 3
        self.inbox: Ring = Ring(
            segment.words, segment.mm, head_at=IN_HEAD, tail_at=IN_TAIL, start=RINGS, capacity=inbox_words
        )
        self.outbox: Ring = Ring(
            segment.words,
            segment.mm,
            head_at=OUT_HEAD,
            tail_at=OUT_TAIL,
            start=RINGS + inbox_words,
            capacity=_OUTBOX_BYTES >> 3,
        )

    @classmethod
    def create(cls) -> Channel:
        """In the parent."""
        with contextlib.ExitStack() as failed:
            segment = Segment.create((RINGS << 3) + _INBOX_BYTES + _OUTBOX_BYTES, kind=trail.KIND)
            failed.callback(segment.close)
            lock, wake = Semaphore.create_all([(1, 1), (0, MAX_VALUE)], segment.name)
            failed.pop_all()
        return cls(segment, lock, wake)

    @classmethod
    def attach(cls, segment: str, lock: str, wake: str) -> Channel:
        """In the worker."""
        return cls(Segment.attach(segment), Semaphore.attach(lock, 1), Semaphore.attach(wake, MAX_VALUE))

    @override
    def __reduce__(self) -> tuple[Callable[..., Channel], tuple[str, str, str]]:
        return Channel.attach, (self.segment.name, self.lock.name, self.wake.name)

    def dismiss(self) -> None:
        """In the parent, which has nobody there: a worker that comes all the same leaves at once."""
        self.inbox.try_put(LEAVE_RECORD)
        self.wake.release()

    def discard_semaphores(self) -> None:
        """In the parent: remove their names. The worker that is to come has come, and has them open."""
        with tracker.in_one_message():
            self.lock.close()
            self.wake.close()

    def discard(self) -> None:
        """In the parent: remove the names. The memory goes with the last thread that looks at it."""
        with tracker.in_one_message():
            self.segment.unlink()
            self.discard_semaphores()


class Board:
    """The pool's page and its two bells, seen from either side. For workers it is as their channel."""

    __slots__ = ("back", "front", "segment", "words")

    def __init__(self, segment: Segment, front: Semaphore, back: Semaphore) -> None:
        self.segment: Segment = segment
        self.words: memoryview[int] = segment.words
        self.front: Semaphore = front
        self.back: Semaphore = back

    @classmethod
    def create(cls, name: str) -> Board:
        """In the parent.

        Args:
            name: what people call the pool.
        """
        # Now, and not when the board is closed: that must not need anything of the system.
        _silent_bell()
        with contextlib.ExitStack() as failed:
            segment = Segment.create(1, kind="pool")
            failed.callback(segment.close)
            front, back = Semaphore.create_all([(0, MAX_VALUE), (0, MAX_VALUE)], segment.name)
            failed.pop_all()
        told = name.encode(errors="replace")[:_LONGEST_NAME]
        segment.mm[NAME_AT : NAME_AT + 1 + len(told)] = bytes((len(told),)) + told
        return cls(segment, front, back)

    @classmethod
    def attach(cls, segment: str, front: str, back: str) -> Board:
        """In the worker."""
        return cls(
            Segment.attach(segment), Semaphore.attach(front, MAX_VALUE), Semaphore.attach(back, MAX_VALUE)
        )

    @override
    def __reduce__(self) -> tuple[Callable[..., Board], tuple[str, str, str]]:
        return Board.attach, (self.segment.name, self.front.name, self.back.name)

    def discard(self) -> None:
        """In the parent: remove the names."""
        with tracker.in_one_message():
            self.segment.unlink()
            self.front.close()
            self.back.close()

    def close(self) -> None:
        """In the parent, when no worker is left: give back names, descriptor and memory.

        A thread that is still looking keeps its own view. Who comes later finds an empty page, and bells that
        nobody hears.
        """
        self.discard()
        self.segment.close()
        self.words = self.segment.words
        self.front = self.back = _silent_bell()


@functools.cache
def _silent_bell() -> Semaphore:
    return Semaphore.private()


def ring_bell(bell: Semaphore) -> None:
    """Wake whoever sleeps at `bell`."""
    try:
        bell.release()
    except ValueError:
        # Full of rings that nobody has heard yet: whoever listens wakes anyway.
        return


class Barrier:
    """A full memory barrier between a store and a following load, on every machine.

    x86 keeps stores in order and loads in order, but lets a load overtake an earlier store to another
    address. Taking a free lock is an atomic read-modify-write, which nothing passes; it costs some 40 ns.
    """

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = threading.Lock()

    def __call__(self) -> None:
        # Each object is used by one thread at a time, so the lock is free here; or an interrupt has come in
        # between, and it is given back now. Giving back is a read-modify-write as well.
        self._lock.acquire(False)
        self._lock.release()
