"""What killed processes leave in shared memory.

It is removed when they die, unless other processes use it, and multiprocessing's resource tracker prints no
warnings.
"""

from __future__ import annotations

import functools
import mmap
import os
import pickle
import signal
import sys
import textwrap
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter, TaskPool, WorkerProcess
from mpkit._platform.parent_death.parent_watch import ParentLink
from mpkit._platform.processes import identity
from mpkit._platform.processes.identity import ProcessIdentity
from mpkit._platform.stdlib import notes
from mpkit._platform.stdlib import tracker as real_tracker
from mpkit._shm.locks import remains, shared_object
from mpkit._shm.memory import names, trail
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.errors import HandleLost, WorkerCrashed
from mpkit.process import ties
from tests.contract import pool_tasks as tasks
from tests.helpers.dying import die_at
from tests.helpers.leftovers import names_of
from tests.helpers.processes import run_python
from tests.helpers.waiting import PATIENCE, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks into /dev/shm")

EVERY_STEP = bool(os.environ.get("MPKIT_EVERY_STEP"))

#: What tasks have made is kept alive here.
kept: list[Any] = []


@pytest.fixture
def pool() -> Iterator[TaskPool]:
    with TaskPool(1, context="fork", grace_period=0.1) as made:
        yield made


def make_everything() -> list[int]:
    """Make one object of each kind, here and in descendants; return the pids of all these processes."""
    kept.extend([BoundedQueue(), Lock(), LockedCounter(), TaskPool(1, context="fork")])
    nested = kept[-1].apply(make_a_queue)
    child = WorkerProcess(target=make_a_queue_and_stay, args=(kept[0],), start_method="fork")
    child.start()
    kept.append(child)
    assert kept[0].get(timeout=PATIENCE) == "made"
    assert child.pid
    return [os.getpid(), nested, child.pid]


def make_a_queue() -> int:
    kept.append(BoundedQueue())
    return os.getpid()


def make_a_queue_and_stay(queue: BoundedQueue[str]) -> None:
    make_a_queue()
    queue.put("made")
    signal.pause()


def test_everything_that_a_task_has_made_is_removed_when_its_worker_dies(pool: TaskPool) -> None:
    pids = pool.apply(make_everything)
    assert all(names_of(pid) for pid in pids)
    with pytest.raises(WorkerCrashed):
        pool.apply(tasks.kill_myself)
    # It is removed while the pool goes on, not only at the end of the program.
    wait_until(lambda: not any(names_of(pid) for pid in pids), "they are gone")
    assert pool.apply(tasks.square, (3,)) == 9


@pytest.mark.parametrize("way", ["kill", "_exit"])
def test_everything_that_a_process_has_made_is_removed_when_it_dies(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The guardian kills its descendants, and may have to wait for a core.
    monkeypatch.setattr(ties, "_FAMILY_PATIENCE_SECONDS", PATIENCE)
    queue: BoundedQueue[list[int]] = BoundedQueue()

    def target() -> None:
        queue.put(make_everything())
        if way == "_exit":
            os._exit(0)
        signal.pause()

    with WorkerProcess(target=target, start_method="fork") as process:
        pids = queue.get(timeout=PATIENCE)
        if way == "kill":
            process.kill()
        process.join()
        assert not any(names_of(pid) for pid in pids)


def make_and_give() -> BoundedQueue[int]:
    kept.append(BoundedQueue())
    made: BoundedQueue[int] = kept[-1]
    made.put(os.getpid())
    return made


def test_an_object_that_others_have_open_outlives_its_creator() -> None:
    """The API promises that an object lives as long as any process has it open, even if its creator dies."""
    with TaskPool(1, context="fork") as pool:
        queue = pool.apply(make_and_give)
        creator = queue.get()
        with pytest.raises(WorkerCrashed):
            pool.apply(tasks.kill_myself)
        # The new worker must be able to open it by its name.
        pool.apply(put_into, (queue, 3))
    assert queue.get(timeout=PATIENCE) == 3
    assert names_of(creator)
    queue.close()
    # Do now what would be done within a minute.
    names.remove_unneeded()
    assert not names_of(creator)


def put_into(queue: BoundedQueue[int], value: int) -> None:
    queue.put(value)


def test_a_pickled_handle_can_be_opened_for_a_while_after_its_creator_has_died(
    pool: TaskPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    under_way = [pool.apply(make_and_pickle) for _ in range(2)]
    with pytest.raises(WorkerCrashed):
        pool.apply(tasks.kill_myself)
    assert pool.apply(tasks.square, (3,)) == 9
    assert pickle.loads(under_way[0]).get_nowait()
    # At the next check after that time, the second one is removed.
    later = time.monotonic() + names.LINGER_SECONDS + 1
    monkeypatch.setattr("mpkit._shm.memory.names.CLOCK.monotonic", lambda: later)
    names._remove_due()
    with pytest.raises(HandleLost):
        pickle.loads(under_way[1]).get_nowait()


def make_and_pickle() -> bytes:
    return pickle.dumps(make_and_give())


class Tracker:
    """Stands for the resource tracker: notes in a file what this process and its forks tell it."""

    def __init__(self, file: Path) -> None:
        self._file = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND)
        #: After this many messages the process is killed: just after it has registered a name, or just before
        #: it would unregister one. (-1: never.)
        self.words_left = -1

    def tell(self, messages: Sequence[real_tracker.Message]) -> None:
        # Handle each message by itself, so that the process can also be killed between two of them.
        for what, name, rtype in messages:
            if what == "REGISTER":
                os.write(self._file, f"+ {rtype} {name}\n".encode())
                self._die_or_go_on()
            else:
                self._die_or_go_on()
                os.write(self._file, f"- {rtype} {name}\n".encode())

    def _die_or_go_on(self) -> None:
        if self.words_left == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        self.words_left -= 1

    def die_after(self, words: int, operation: Callable[[], object]) -> bool:
        """Run it in a child that is killed after `words` messages. Return False if it had fewer to send."""
        pid = os.fork()
        if pid == 0:
            try:
                self.words_left = words
                operation()
            finally:
                os._exit(0)
        return os.WIFSIGNALED(os.waitpid(pid, 0)[1])

    def knows(self) -> set[str]:
        known: set[str] = set()
        for line in os.pread(self._file, 1 << 24, 0).decode().splitlines():
            # The real tracker would print an error if a name were unregistered twice.
            assert line[0] == "+" or line[2:] in known, f"forgotten twice: {line}"
            (known.add if line[0] == "+" else known.remove)(line[2:])
        return known


@pytest.fixture
def tracker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Tracker:
    made = Tracker(tmp_path / "tracker")
    # Names of earlier tests belong to the real tracker: send it what is still to be sent, and hide the names
    # that linger.
    real_tracker.tell()
    none: deque[names._Lingering] = deque()
    monkeypatch.setattr(names, "_lingering", none)
    monkeypatch.setattr(real_tracker, "send", made.tell)
    return made


def a_queue() -> None:
    queue: BoundedQueue[int] = BoundedQueue()
    queue.put(1)
    queue.close()


def a_segment() -> None:
    Segment.create(1, kind="test").close()


def an_old_segment() -> None:
    segment = Segment.create(1, kind="test")
    for _ in range(50):
        notes.note("/of-others", "semaphore")
    segment.close()


def a_semaphore() -> None:
    Semaphore.create(1, 1, kind="test").close()


def a_private_semaphore() -> None:
    Semaphore.private()


class Mortal:
    """A process that keeps notes of the names that it makes, as a worker does, and is perhaps killed."""

    def __init__(self) -> None:
        self._who = mmap.mmap(-1, 16)
        self._notes = mmap.mmap(-1, notes.SIZE)

    def __call__(self, operation: Callable[[], object]) -> None:
        """Run `operation`; called in the child."""
        self._who[:] = b"".join(number.to_bytes(8, "little") for number in identity.current())
        notes.keep(self._keep)
        operation()

    def _keep(self, at: int, record: bytes) -> None:
        self._notes[at : at + len(record)] = record

    @property
    def who(self) -> ProcessIdentity:
        return ProcessIdentity(*(int.from_bytes(self._who[at : at + 8], "little") for at in (0, 8)))

    @property
    def names(self) -> list[Path]:
        """The files that it has left, without those of an earlier process with the same pid."""
        return [file for file in names_of(self.who.pid) if f"-{self.who.started}-" in file.name]

    @property
    def notes(self) -> bytes:
        return self._notes[:]


@pytest.mark.parametrize("operation", [a_queue, a_segment, an_old_segment, a_semaphore, a_private_semaphore])
@pytest.mark.parametrize("steps", ["words", "lines"])
def test_a_process_killed_while_it_makes_and_removes_an_object_leaves_nothing(
    operation: Callable[[], None], steps: str, tracker: Tracker
) -> None:
    """Neither a file, nor a name that only the tracker still knows: it would warn about it at the end."""
    die, stride = (tracker.die_after, 1) if steps == "words" else (die_at, 1 if EVERY_STEP else 97)
    step = 0
    died = True
    while died:
        mortal = Mortal()
        died = die(step, functools.partial(mortal, operation))
        remains.remove(remains.family_of(mortal.who, mortal.notes))
        assert not mortal.names
        assert tracker.knows() == set(), f"killed at step {step}"
        step += stride
    assert step > 2


def test_a_process_killed_while_it_removes_what_another_has_left_leaves_nothing(tracker: Tracker) -> None:
    """The next process must be able to remove what both have left."""
    died = True
    step = 0
    while died:
        first, second = Mortal(), Mortal()
        assert tracker.die_after(-1, functools.partial(first, make_a_lock_and_die))
        assert len(first.names) == 2
        remove = functools.partial(remains.remove, remains.family_of(first.who, first.notes))
        died = tracker.die_after(step, functools.partial(second, remove))
        # Files that are gone, but still registered with the tracker, are in the notes of the second one.
        remains.remove(remains.family_of(second.who, second.notes))
        remains.remove(remains.family_of(first.who, b""))
        assert not first.names
        assert tracker.knows() == set(), f"killed at step {step}"
        step += 1
    assert step > 4


def make_a_lock_and_die() -> None:
    kept.append(Lock())
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_whose_parent_has_died_ends_before_it_makes_a_name() -> None:
    """Otherwise its names stay: the process that cleans up may have searched for children before that."""
    segment = Segment.create(trail.END << 3, kind=trail.KIND)
    try:
        link = ParentLink.create()
        assert ties._follow(segment.name, link)
        assert trail.read(segment.name) == (identity.current(), bytes(notes.SIZE))
        notes.note("/mpkit-1", "semaphore")
        found = trail.read(segment.name)
        assert found is not None
        assert [*notes.read(found[1])] == [("/mpkit-1", "semaphore")]
        me = identity.current()
        assert not ties._follow(segment.name, ParentLink(ProcessIdentity(me.pid, 1), orphan=False))
        name = segment.name
    finally:
        segment.close()
        notes._forget_after_fork()
    assert not ties._follow(name, link)


def test_files_of_other_processes_and_users_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    segment = Segment.create(trail.END << 3, kind=trail.KIND)
    try:
        trail.begin(segment)
        me = identity.current()
        assert [base for _, _, base in remains._left_by(me) if segment.name.endswith(base)]
        # As if another process had written it.
        other = ProcessIdentity(me.pid, me.started + 1)
        segment.words[trail._STARTED] = other.started
        mine, others = remains.family_of(me, b"")
        assert (mine.process, mine.left) == (me, None)
        assert (others.process, others.notes, others.left) == (other, bytes(notes.SIZE), [])
        monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert list(remains._left_by(me)) == []
        assert remains.family_of(me, b"") == [mine]
        with pytest.raises(PermissionError):
            trail.read(segment.name)
    finally:
        notes._forget_after_fork()
        segment.close()


def test_an_incomplete_note_is_ignored() -> None:
    place = bytearray(notes.SIZE)

    def write(at: int, record: bytes) -> None:
        place[at : at + len(record)] = record

    notes.keep(write)
    try:
        notes.note("/mpkit-queue-1-2-0123456789abcdef-0", "semaphore")
        notes.note("/mpkit-queue-1-2-0123456789abcdef", "shared_memory")
        notes.note("/" + "x" * 100, "semaphore")
    finally:
        notes._forget_after_fork()
    noted = list(notes.read(bytes(place)))
    assert noted == [
        ("/mpkit-queue-1-2-0123456789abcdef-0", "semaphore"),
        ("/mpkit-queue-1-2-0123456789abcdef", "shared_memory"),
    ]
    # Half of a note is no valid name: its random part is too short.
    half = bytes(place[:30]) + bytes(34)
    assert list(remains._noted(half)) == []
    assert list(notes.read(b"")) == []


def test_all_kinds_of_shared_objects_are_known_to_the_cleanup() -> None:
    kinds = {kind.form.kind for kind in _subclasses(shared_object.SharedObject) if hasattr(kind, "form")}
    assert kinds == remains._SHARED


def _subclasses(of: type[shared_object.SharedObject]) -> set[type[shared_object.SharedObject]]:
    direct = set(of.__subclasses__())
    return direct.union(*map(_subclasses, direct))


def test_the_resource_tracker_prints_nothing_whatever_was_killed(tmp_path: Path) -> None:
    """Processes are killed in the middle of making and removing queues. The tracker must not warn of names.

    Before it is killed, each process pauses after a certain number of messages to the tracker. So none is
    killed inside `sem_open`, where the C library has a temporary file that nobody else knows of.
    """
    program = tmp_path / "program.py"
    program.write_text(
        textwrap.dedent(
            """
            import os, signal
            from mpkit import BoundedQueue, TaskPool, WorkerProcess
            from mpkit._platform.stdlib import tracker
            from mpkit.errors import WorkerCrashed

            def make(words):
                holding, tell = os.pipe()
                child = WorkerProcess(target=make_on, args=(words, tell), start_method="fork")
                child.start()
                with TaskPool(1, context="fork") as pool:
                    pool.submit(make_on, words, tell)
                    for _ in range(2):
                        assert os.read(holding, 1)
                    os.kill(os.getpid(), signal.SIGKILL)

            def make_on(words, tell):
                send = tracker.send

                def hold_or_go_on():
                    nonlocal words
                    words -= 1
                    if words == 0:
                        os.write(tell, b"x")
                        while True:
                            signal.pause()

                def hold_around(messages):
                    for message in messages:
                        if message[0] == "REGISTER":
                            send([message])
                            hold_or_go_on()
                        else:
                            hold_or_go_on()
                            send([message])

                tracker.send = hold_around
                while True:
                    BoundedQueue().put(bytes(100_000))

            if __name__ == "__main__":
                with TaskPool(2, context="fork") as pool:
                    for handle in [pool.submit(make, words) for words in (1, 4, 9, 31)]:
                        try:
                            handle.result()
                        except WorkerCrashed:
                            print("crashed")
            """
        )
    )
    done = run_python(program)
    assert (done.stdout.split(), done.stderr) == (["crashed"] * 4, "")
