"""The checks, each of them a function. None of them leaves anything behind."""

from __future__ import annotations

import importlib.metadata
import multiprocessing
import os
import platform
import sys
from typing import TYPE_CHECKING

import mpkit
from mpkit import introspect
from mpkit._platform.resources.cpus import usable_cpus
from mpkit._platform.stdlib.contexts import resolve_context
from mpkit._platform.threads.scheduling import FREE_THREADED
from mpkit._shm.memory.names import SHM_DIRECTORY
from mpkit._shm.memory.segment import Segment
from mpkit._shm.memory.semaphore import Semaphore
from mpkit.cli import _text
from mpkit.cli.doctor import leftovers
from mpkit.cli.doctor.finding import Finding, fine, note, problem
from mpkit.errors import MpkitError
from mpkit.introspect import _segments
from mpkit.process import WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Iterator

_OLDEST_PYTHON = (3, 10)
#: With a smaller limit on open files, a pool of a few dozen workers may fail: each
#: worker takes several of them.
_FEW_FILES = 256
#: Shared memory up to this size is worth a note: containers have this much by
#: default, and big items need more.
_SMALL_SHM = 64 * 2**20
#: With less free shared memory than this, there is a problem.
_FULL_SHM = 2 * 2**20
#: How long a process may take to start and to return a result.
_START_SECONDS = 60.0
#: The remedy if leftovers cannot be told from files of other containers.
NEXT_DOOR = (
    "seen from this container, the processes of another one that shares the directory look dead; run doctor"
    " --clean on the host, or add --force where nobody shares it"
)
_EXTRAS = (("cloudpickle", "cloudpickle"), ("progress", "tqdm"), ("top", "rich"))


def python() -> Iterator[Finding]:
    """The version and build of the interpreter."""
    build = f"{platform.python_implementation()} {platform.python_version()}"
    build += " free-threading" if FREE_THREADED else ""
    build += " (debug build)" if hasattr(sys, "gettotalrefcount") else ""
    build += f", {platform.system()} {platform.machine()}"
    if platform.python_implementation() != "CPython":
        yield problem("Python", build, "mpkit relies on CPython's semaphores and fault handler: use CPython")
    elif sys.version_info < _OLDEST_PYTHON:
        yield problem("Python", build, "use Python 3.10 or later")
    elif FREE_THREADED:
        yield note(
            "Python",
            build,
            "the tests pass on 3.13t and 3.14t; the checks of each change run on the standard build only",
        )
    else:
        yield fine("Python", build)


def start_methods() -> Iterator[Finding]:
    """Whether a process can be started, run and ended with each start method."""
    default = resolve_context(None).get_start_method()
    for method in multiprocessing.get_all_start_methods():
        subject = f"start method {method}"
        process = WorkerProcess(target=os.getpid, start_method=method)
        try:
            process.start()
            pid = process.result(timeout=_START_SECONDS)
        except Exception as error:  # noqa: BLE001  any error is the finding
            yield problem(subject, f"{type(error).__name__}: {error}", "choose another start method")
            if process.pid is not None:
                process.stop(grace_period=0)
            continue
        process.join()
        process.close()
        yield fine(
            subject, f"works{' (the default of mpkit)' if method == default else ''}; it ran as process {pid}"
        )


def shared_memory() -> Iterator[Finding]:
    """Whether shared memory can be used, and how much there is."""
    if sys.platform != "win32" and os.path.isdir(SHM_DIRECTORY):
        space = os.statvfs(SHM_DIRECTORY)
        total, free = space.f_blocks * space.f_frsize, space.f_bavail * space.f_frsize
        detail = f"{_text.size(free)} free of {_text.size(total)}"
        more = "free some, or make it larger (in a container: --shm-size=1g)"
        if not os.access(SHM_DIRECTORY, os.W_OK | os.X_OK):
            yield problem(
                SHM_DIRECTORY, "may not be written to", "make it writable for this user (mode 1777)"
            )
        elif free < _FULL_SHM:
            yield problem(SHM_DIRECTORY, detail, more)
        elif total <= _SMALL_SHM:
            yield note(SHM_DIRECTORY, detail, f"enough for small items; for large ones {more}")
        else:
            yield fine(SHM_DIRECTORY, detail)
    try:
        segment = Segment.create(1, kind="doctor")
        try:
            where = os.path.dirname(segment.name)
        finally:
            segment.close()
        Semaphore.create(1, 1, kind="doctor").close()
    except (MpkitError, OSError) as error:
        yield problem("shared memory", str(error), "queues, locks and pools need it")
    else:
        yield fine("shared memory", f"a file (in {where}) and a semaphore were made and removed")


def resource_tracker() -> Iterator[Finding]:
    """Whether multiprocessing's resource tracker is running, which removes what killed processes leave."""
    if os.name != "posix":
        return
    for process in introspect.tree().walk():
        if any("resource_tracker" in word for word in process.cmdline):
            yield fine("resource tracker", f"runs as process {process.pid}")
            return
    yield problem(
        "resource tracker",
        "does not run",
        "names in shared memory stay behind when a process is killed; does something here end processes?",
    )


def limits() -> Iterator[Finding]:
    """The limits that the system sets for this process."""
    if sys.platform == "win32":
        return
    import resource  # noqa: PLC0415  POSIX only

    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if files == resource.RLIM_INFINITY:
        yield fine("open files", "unlimited")
    elif files < _FEW_FILES:
        yield problem("open files", f"at most {files}", "raise the limit: ulimit -n 4096")
    else:
        yield fine("open files", f"at most {_text.count(files)}")
    memory, _ = resource.getrlimit(resource.RLIMIT_AS)
    if memory == resource.RLIM_INFINITY:
        yield fine("address space", "unlimited")
    else:
        yield note(
            "address space",
            f"at most {_text.size(memory)}",
            "shared memory counts towards it: ulimit -v unlimited",
        )


def cpus() -> Iterator[Finding]:
    """How many CPUs there are, and how many of them this process may use."""
    there, usable = os.cpu_count() or 1, usable_cpus()
    if usable < there:
        yield note(
            "CPUs",
            f"{usable} usable of {there} (affinity or quota of the container); pools start {usable} workers",
        )
    else:
        yield fine("CPUs", f"{usable} usable of {there}")


def left_behind() -> Iterator[Finding]:
    """Whether dead processes have left files."""
    found = leftovers.find()
    if not found:
        yield fine("left behind", "nothing")
        return
    size = _text.size(sum(left.size_bytes for left in found))
    what = f"{_text.counted(len(found), 'file')} of dead processes, {size}"
    # If another program is running, the files may be those of a child of it that has died: its resource
    # tracker removes them when the program ends.
    if not leftovers.sees_every_process():
        yield note("left behind", what, NEXT_DOOR)
    elif _segments.other_trackers():
        yield note("left behind", what, "a program that still runs may remove them at its end")
    else:
        yield problem("left behind", what, "remove them: python -m mpkit doctor --clean")


def packages() -> Iterator[Finding]:
    """The version of mpkit, of the package that it needs, and of the optional ones."""
    yield fine("mpkit", mpkit.__version__)
    yield fine("psutil", importlib.metadata.version("psutil"))
    for extra, package in _EXTRAS:
        try:
            yield fine(f"extra {extra}", f"{package} {importlib.metadata.version(package)}")
        except importlib.metadata.PackageNotFoundError:
            yield fine(f"extra {extra}", f'not installed (optional: pip install "mpkit[{extra}]")')


#: In the order in which they are shown. `resource_tracker` comes after the checks that have it started.
ALL = (python, start_methods, shared_memory, resource_tracker, limits, cpus, left_behind, packages)
