"""Little shared memory, address space or descriptors: an error or a fall-back, never a crash or a leak."""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit._shm.memory.names import owned_names
from tests.helpers.processes import ROOT, run_python

pytestmark = pytest.mark.skipif(
    sys.platform != "linux", reason="needs /dev/shm, namespaces and limits of Linux"
)

SCRIPT = """
import errno, gc, os, resource, sys, tempfile
from mpkit import BoundedQueue, Lock, LockedCounter
from mpkit.errors import SharedMemoryExhausted

def left():
    places = {"/dev/shm", tempfile.gettempdir()}
    return sorted(n for p in places for n in os.listdir(p) if "mpkit-" in n and f"-{os.getpid()}-" in n)

def check(error):
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC, repr(error)
    assert "raise" in str(error) or "free" in str(error), error
"""

FILL = """
queue = BoundedQueue()
count = 0
try:
    while count < 100_000:
        queue.put(bytes([count & 255]) * SIZE)
        count += 1
except SharedMemoryExhausted as error:
    check(error)
else:
    raise AssertionError("never full")
assert queue.qsize() == count > 0
for number in range(count):
    assert queue.get() == bytes([number & 255]) * SIZE
for number in range(3):
    queue.put(bytes(SIZE))
    assert queue.get() == bytes(SIZE)
queue.close()
del queue
print("fine", left())
"""


def in_namespace(tmp_path: Path, options: str, code: str) -> str:
    """Run `code` in a mount namespace with its own /dev/shm, and return the output."""
    unshare = shutil.which("unshare")
    if unshare is None or os.geteuid() != 0:
        pytest.skip("needs root, to mount a small /dev/shm in its own namespace")
    program = tmp_path / "program.py"
    program.write_text(SCRIPT + textwrap.dedent(code))
    mount = f"mount -t tmpfs -o {options} tmpfs /dev/shm"
    if subprocess.run([unshare, "-m", "sh", "-c", mount], capture_output=True, check=False).returncode:
        pytest.skip("mounting is not permitted here")
    done = subprocess.run(
        [unshare, "-m", "sh", "-c", f'{mount} && exec "$0" "$1"', sys.executable, str(program)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=100,
        check=False,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def limited(tmp_path: Path, code: str) -> str:
    program = tmp_path / "program.py"
    program.write_text(SCRIPT + textwrap.dedent(code))
    return run_python(program).stdout


@pytest.mark.parametrize("size", [100, 50_000, 700_000])
def test_putting_into_a_full_dev_shm_raises_and_loses_no_items(tmp_path: Path, size: int) -> None:
    assert in_namespace(tmp_path, "size=2m", FILL.replace("SIZE", str(size))) == "fine []\n"


def test_nothing_can_be_created_in_a_full_dev_shm_and_nothing_is_left_there(tmp_path: Path) -> None:
    code = """
    with open("/dev/shm/filler", "wb", buffering=0) as filler:
        try:
            while True:
                filler.write(bytes(4096))
        except OSError:
            pass
    for kind in (BoundedQueue, Lock, LockedCounter):
        for _ in range(20):
            try:
                kind()
            except SharedMemoryExhausted as error:
                check(error)
            else:
                raise AssertionError("created")
    print(left())
    os.unlink("/dev/shm/filler")
    with BoundedQueue() as queue:
        queue.put(1)
        print(queue.get())
    """
    assert in_namespace(tmp_path, "size=1m", code) == "[]\n1\n"


def test_with_a_read_only_dev_shm_the_error_says_what_to_do(tmp_path: Path) -> None:
    code = """
    for kind in (BoundedQueue, Lock, LockedCounter):
        try:
            kind()
        except SharedMemoryExhausted as error:
            assert isinstance(error, OSError) and error.errno == errno.ENOSPC, repr(error)
            assert "mount a tmpfs there" in str(error), error
        else:
            raise AssertionError("created")
    print(left())
    """
    assert in_namespace(tmp_path, "ro", code) == "[]\n"


def test_a_process_that_first_uses_a_queue_when_dev_shm_is_full_is_not_killed(tmp_path: Path) -> None:
    """It gets its item or an error, and the queue goes on working."""
    code = """
    queue = BoundedQueue()
    queue.put("before")
    filler = os.open("/dev/shm/filler", os.O_CREAT | os.O_WRONLY)
    try:
        while True:
            os.write(filler, bytes(4096))
    except OSError:
        pass
    pid = os.fork()
    if pid == 0:
        try:
            queue.get(timeout=60)
        except SharedMemoryExhausted as error:
            check(error)
            os._exit(7)
        os._exit(8)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    # The child got its item, or the error. It was not killed.
    print(code in (7, 8), queue.qsize() == (1 if code == 7 else 0))
    os.unlink("/dev/shm/filler")
    queue.put("after")
    print(queue.get_many()[-1])
    """
    assert in_namespace(tmp_path, "size=1m", code) == "True True\nafter\n"


def test_putting_beyond_the_limit_of_address_space_raises_and_the_queue_goes_on(tmp_path: Path) -> None:
    code = """
    queue = BoundedQueue()
    queue.put(bytes(1000)); queue.get()
    with open("/proc/self/statm") as file:
        used = int(file.read().split()[0]) * resource.getpagesize()
    data = bytes(60_000_000)
    resource.setrlimit(resource.RLIMIT_AS, (used + 100_000_000, resource.RLIM_INFINITY))
    try:
        for _ in range(10):
            queue.put(data)
    except SharedMemoryExhausted as error:
        check(error)
    except MemoryError:
        pass  # raised by the interpreter itself: there was no memory for the pickle
    else:
        raise AssertionError("never refused")
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    while queue.qsize():
        assert queue.get() == data
    queue.put("goes on")
    print(queue.get())
    queue.close()
    del queue
    print(left())
    """
    assert limited(tmp_path, code) == "goes on\n[]\n"


def test_creating_beyond_the_limit_of_open_files_raises_and_leaves_nothing(tmp_path: Path) -> None:
    code = """
    BoundedQueue().close()  # the first one opens what stays open
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) + 12,) * 2)
    for kind in (BoundedQueue, Lock, LockedCounter):
        things = []
        try:
            while len(things) < 100:
                things.append(kind())
        except SharedMemoryExhausted as error:
            check(error)
        else:
            raise AssertionError("never refused")
        assert things
        things.clear()
        gc.collect()
    print(left())
    with BoundedQueue() as queue:
        queue.put(1)
        print(queue.get())
    """
    assert limited(tmp_path, code) == "[]\n1\n"


def open_files() -> list[str]:
    """Return the names of mpkit's files that this process has open."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):
            found.append(os.readlink(f"/proc/self/fd/{fd}"))
    return sorted(name for name in found if "mpkit-" in name)


def come_and_go(number_of_rounds: int) -> None:
    for number in range(number_of_rounds):
        with BoundedQueue[Any]() as queue:
            if number % 3 == 0:
                queue.put(bytes(40_000 * (number % 2) + 1))
                queue.get()
        lock, counter = Lock(), LockedCounter()
        lock.close()
        counter.close()


def test_objects_that_are_created_and_closed_leave_no_names_or_open_files() -> None:
    BoundedQueue[Any]().close()  # the first one opens what stays open
    gc.collect()
    before, fds = owned_names(), open_files()
    come_and_go(300)
    gc.collect()
    assert not set(owned_names()).difference(before)  # names of earlier tests may go meanwhile
    assert open_files() == fds


def test_a_hundred_queues_work_at_once_and_each_needs_little_memory() -> None:
    queues: list[BoundedQueue[int]] = [BoundedQueue() for _ in range(100)]
    for number, queue in enumerate(queues):
        queue.put(number)
    assert [queue.get() for queue in queues] == list(range(100))
    shared = queues[0]._shared
    assert shared is not None
    touched = os.fstat(shared.segment.fd).st_blocks * 512
    for semaphore in shared.semaphores:
        touched += os.stat(f"/dev/shm/sem.{semaphore.name[1:]}").st_blocks * 512
    touched += len(shared.locks) * 4096  # the semaphores without a name, which each lock has for threads
    assert touched < 128 * 1024
    for queue in queues:
        queue.close()
