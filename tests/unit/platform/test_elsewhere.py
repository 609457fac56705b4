"""The parts of `mpkit._platform` for other systems, as far as they can be run on this one."""

from __future__ import annotations

import errno
import gc
import importlib.util
import os
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import psutil
import pytest

from mpkit._platform.files import own_locks, use_marks
from mpkit._platform.processes.identity import current
from tests.helpers.processes import in_a_fork, run_python


def as_on(platform: str, name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Load a module of `mpkit._platform` as on another system, for the test and for modules loaded later."""
    monkeypatch.setattr(sys, "platform", platform)
    full_name = f"mpkit._platform.{name}"
    spec = importlib.util.find_spec(full_name)
    assert spec is not None
    assert spec.loader is not None
    module: ModuleType = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, full_name, module)
    package, _, its_name = full_name.rpartition(".")
    monkeypatch.setattr(sys.modules[package], its_name, module, raising=False)
    spec.loader.exec_module(module)
    return module


def test_setting_the_clock_does_not_change_the_identity_of_a_process(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = as_on("darwin", "processes.identity", monkeypatch)
    me = identity.look(os.getpid())
    told = psutil.Process.create_time
    # As in a process that imported psutil before the clock was set.
    monkeypatch.setattr(psutil.Process, "create_time", lambda process: told(process) + 9.0)
    assert identity.is_alive(me)
    assert not identity.is_alive(me._replace(started=me.started + 1))


def test_a_process_with_the_pid_of_an_earlier_one_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = as_on("darwin", "processes.identity", monkeypatch)
    family_tree = as_on("darwin", "processes.family_tree", monkeypatch)
    me = identity.look(os.getpid())
    # psutil caches the processes that it has seen.
    earlier = {process.pid: process for process in psutil.process_iter()}[os.getpid()]
    monkeypatch.setattr(earlier, "_ident", (earlier.pid, 0.0))
    assert family_tree._parents()[os.getpid()] == (os.getppid(), me)


def test_a_lock_that_nobody_has_any_more_is_free(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on("darwin", "files.own_locks", monkeypatch)
    filelock = as_on("darwin", "files.filelock", monkeypatch)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        lock = filelock.FileLock.try_acquire(fd)
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is None)
        del lock
        gc.collect()
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is not None)
    finally:
        os.close(fd)


def test_a_lock_is_released_where_nothing_can_be_imported_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the interpreter ends: the lock may belong to an object that is only dropped then."""
    as_on("darwin", "files.own_locks", monkeypatch)
    filelock = as_on("darwin", "files.filelock", monkeypatch)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        lock = filelock.FileLock.try_acquire(fd)
        with monkeypatch.context() as ending:
            ending.delitem(sys.modules, "fcntl")
            ending.setattr(sys, "meta_path", None)
            lock.release()
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is not None)
    finally:
        os.close(fd)


def test_reading_and_writing_more_than_macos_accepts_in_one_call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For files without a name: the result of a process may be larger than 2 GiB."""
    positioned = as_on("darwin", "files.positioned", monkeypatch)
    anonymous = as_on("darwin", "files.anonymous", monkeypatch)
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(positioned, "_MOST_AT_ONCE", 1000, raising=False)

    def pwrite(descriptor: int, data: memoryview, at: int) -> int:
        assert len(data) <= 1000
        return write(descriptor, data, at)

    def pread(descriptor: int, size: int, at: int) -> bytes:
        assert size <= 1000
        return read(descriptor, size, at)

    monkeypatch.setattr(os, "pwrite", pwrite)
    monkeypatch.setattr(os, "pread", pread)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    file = anonymous.AnonymousFile.create("test")
    file.write([bytes(2500), b"end"], at=0)
    assert file.read() == bytes(2500) + b"end"
    file.close()


def test_a_file_that_is_closed_meanwhile_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_on("darwin", "files.own_locks", monkeypatch)
    filelock = as_on("darwin", "files.filelock", monkeypatch)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    lock = filelock.FileLock.try_acquire(fd)
    os.close(fd)
    lock.release()
    assert lock._fd < 0


def test_if_it_is_unknown_whether_there_are_children_there_may_be_some(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Otherwise `stop` would miss programs started at the last moment (on macOS before Python 3.13)."""
    family_tree = as_on("darwin", "processes.family_tree", monkeypatch)
    monkeypatch.delattr(os, "waitid", raising=False)
    assert family_tree.has_children()


def test_without_a_descriptor_for_a_kqueue_the_pids_are_examined(monkeypatch: pytest.MonkeyPatch) -> None:
    exits = as_on("darwin", "processes.exits", monkeypatch)

    def no_descriptor() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("select.kqueue", no_descriptor, raising=False)
    me = current()
    watcher = exits.ExitWatcher()
    assert watcher.add(me)
    assert not watcher.add(me._replace(started=me.started + 1))
    assert watcher.wait(0.0) == (set(), False)
    watcher.close()


def test_on_windows_a_signal_reaches_only_the_right_process(monkeypatch: pytest.MonkeyPatch) -> None:
    identity = as_on("win32", "processes.identity", monkeypatch)
    signalling = as_on("win32", "processes.signalling", monkeypatch)
    me = identity.look(os.getpid())
    sent: list[int] = []

    def kill(pid: int, signum: int) -> None:
        sent.append(signum)
        raise OSError(errno.EINVAL, "The parameter is incorrect")  # Windows: no such process

    monkeypatch.setattr(os, "kill", kill)
    assert signalling.may_be_signalled(me)
    assert sent == [], "0 is Ctrl-C there"
    alive = iter([True, False])
    monkeypatch.setattr(identity, "is_alive", lambda _: next(alive))
    assert not signalling.send_signal(me, signal.SIGTERM)
    assert sent == [signal.SIGTERM]


def test_on_windows_a_child_is_known_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its identity `stop` finds no descendants."""
    child_process = as_on("win32", "stdlib.child_process", monkeypatch)
    child = child_process.ChildProcess(start_method="spawn")
    assert child_process.identity_of(child) is None
    # Like the process objects of multiprocessing on Windows.
    vars(child)["_popen"] = SimpleNamespace(pid=os.getpid(), poll=lambda: 0, close=lambda: None)
    assert child_process.identity_of(child).pid == os.getpid()
    child.close()
    assert child_process.identity_of(child) is None


AS_ON_WINDOWS = """
import importlib, mmap, os, pkgutil, select, signal, socket, sys
from multiprocessing import context, reduction

import _socket
import mpkit

def import_all():
    for found in pkgutil.walk_packages(mpkit.__path__, "mpkit."):
        if found.name != "mpkit.__main__":
            importlib.import_module(found.name)

# Once as here, for all that the standard library does with this system when it is imported.
import_all()
for name in [name for name in sys.modules if name.partition(".")[0] == "mpkit"]:
    del sys.modules[name]
for name in ("fcntl", "grp", "pwd", "resource", "termios"):
    sys.modules[name] = None
for name in ("forkserver", "popen_fork", "popen_forkserver", "popen_spawn_posix", "resource_tracker"):
    sys.modules[f"multiprocessing.{name}"] = None
there = {"SIGABRT", "SIGFPE", "SIGILL", "SIGINT", "SIGSEGV", "SIGTERM", "SIG_DFL", "SIG_IGN"}
for module, lacks in (
    (os, {"O_CLOEXEC", "O_NOFOLLOW", "O_NONBLOCK", "WEXITED", "WNOHANG", "WNOWAIT", "fork", "geteuid"}),
    (os, {"memfd_create", "pidfd_open", "posix_fallocate", "pread", "pwrite", "register_at_fork", "setsid"}),
    (os, {"sched_yield", "set_blocking", "statvfs", "sysconf", "uname", "wait4", "waitid"}),
    (signal, {name for name in dir(signal) if name.startswith("SIG") and name.isupper()} - there),
    (signal, {"pause", "pidfd_send_signal", "pthread_sigmask", "setitimer"}),
    (socket, {"AF_UNIX", "MSG_DONTWAIT", "MSG_NOSIGNAL"}),
    (_socket, {"socketpair"}),
    (select, {"epoll", "poll"}),
    (mmap, {name for name in dir(mmap) if name.startswith(("MADV_", "MAP_", "PROT_"))}),
    (reduction, {"DupFd", "recvfds", "sendfds"}),
    (context, {name for name in dir(context) if name.startswith("Fork")}),
):
    for name in lacks & set(dir(module)):
        delattr(module, name)
os.name, sys.platform = "nt", "win32"

import mpkit
import_all()
from mpkit import BoundedQueue, Lock, LockedCounter, TaskPool, WorkerProcess, compat
for make in (lambda: TaskPool(context="spawn"), BoundedQueue, Lock, LockedCounter, compat.Lock, compat.Queue):
    try:
        make()
    except OSError as error:
        assert "Windows" in str(error), error
    else:
        raise AssertionError(make)
print(WorkerProcess(target=print).state.value, flush=True)
os._exit(0)
"""


@pytest.mark.skipif(os.name != "posix", reason="hides what Windows lacks")
def test_on_windows_all_can_be_imported_and_unsupported_calls_say_so() -> None:
    assert run_python("-c", AS_ON_WINDOWS).stdout == "new\n"


IN_A_SANDBOX = """
import errno, fcntl, os, signal, sys, time

def refused(*_):
    raise OSError(getattr(errno, sys.argv[2]), os.strerror(getattr(errno, sys.argv[2])))

def without_own_locks(file, command, argument=0, change=fcntl.fcntl):
    own = (fcntl.F_OFD_GETLK, fcntl.F_OFD_SETLK)
    return refused() if command in own else change(file, command, argument)

if sys.argv[1] == "fcntl":
    fcntl.fcntl = without_own_locks
else:
    for module in (os, signal):
        for name in sys.argv[1].split():
            if hasattr(module, name):
                setattr(module, name, refused)

from mpkit import BoundedQueue, TaskPool, WorkerProcess
from mpkit.errors import TaskTimeout

with BoundedQueue() as queue, TaskPool(context="fork") as pool:
    with WorkerProcess(target=queue.put, args=(bytes(300_000),), start_method="fork"):
        assert len(queue.get()) == 300_000
    task = pool.with_options(timeout=0.1).submit(time.sleep, 600)
    assert isinstance(task.exception(), TaskTimeout)
    print("works", flush=True)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
def test_where_a_lock_goes_with_any_descriptor_a_fork_gives_none_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In gVisor: before a fork the creator of a queue marks its file by a descriptor of its own."""
    filelock = as_on("darwin", "files.filelock", monkeypatch)
    monkeypatch.setattr(own_locks, "ARE_KNOWN", False)
    monkeypatch.setattr("fcntl.fcntl", refuse_all)
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    try:
        lock = filelock.FileLock.try_acquire(fd)
        with pytest.raises(OSError, match="not supported"):
            use_marks.mark_of_its_own(fd)
        assert in_a_fork(lambda: filelock.FileLock.try_acquire(fd) is None)
        lock.release()
    finally:
        os.close(fd)


def refuse_all(*_: object) -> None:
    """As a kernel that does not know a command of fcntl(2)."""
    raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))


@pytest.mark.skipif(sys.platform != "linux", reason="takes away what Linux has")
@pytest.mark.parametrize(
    "lacks, code",
    [
        # gVisor
        ("fcntl", "EINVAL"),
        # some file systems with musl as the C library; and a filter of system calls
        ("posix_fallocate", "EOPNOTSUPP"),
        ("posix_fallocate", "EPERM"),
        ("pidfd_send_signal", "ENOSYS"),
        ("pidfd_send_signal", "EPERM"),
        ("process_cpu_count sched_getaffinity", "EPERM"),
        ("memfd_create pidfd_open", "ENOSYS"),
        ("memfd_create pidfd_open", "EPERM"),
    ],
)
def test_in_a_sandbox_that_lacks_what_linux_has(lacks: str, code: str) -> None:
    assert run_python("-c", IN_A_SANDBOX, lacks, code).stdout == "works\n"
