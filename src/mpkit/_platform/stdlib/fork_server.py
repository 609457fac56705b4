"""Starts the fork server of multiprocessing with mpkit's modules, without interfering with the application.

Private are the server's object, ``forkserver._forkserver``, and its list of modules: the public
`set_forkserver_preload` replaces the list that the application has set, and does not return it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Sequence
from multiprocessing import util
from types import FrameType
from typing import Any, Final

from mpkit._platform.signals.interrupts import deferred_interrupts
from mpkit._platform.stdlib.preparation import starting_by
from mpkit._platform.stdlib.tracker_process import start_tracker
from mpkit._platform.threads.forks import in_forked_children
from mpkit._platform.threads.interruptible_lock import InterruptibleLock

#: Modules that are preloaded if the program has loaded them by now: most likely its main module imports them,
#: and so will its children.
_TAKEN: Final = ("mpkit.pool._facade", "mpkit.process.worker", "mpkit.queue", "mpkit.sync", "mpkit.compat")
#: Modules that every child would import anyway: for the descriptors that it gets, and for the main module.
#: (When the compiler is first used, for the text of the main module, it creates all classes of `_ast`: a
#: millisecond.)
_FOR_EVERY_CHILD: Final = ("multiprocessing.popen_forkserver", "pkgutil", "_ast")

#: The longest temporary directory in which the server can listen: a socket's address has 104 bytes (on macOS;
#: four more on Linux), of which the names in the directory take 32.
_LONGEST_DIRECTORY: Final = 71

_starting_server = InterruptibleLock()


@in_forked_children
def _forget_after_fork() -> None:
    global _starting_server
    _starting_server = InterruptibleLock()
    forkserver = sys.modules.get("multiprocessing.forkserver")
    server: Any = vars(forkserver).get("_forkserver") if forkserver is not None else None
    if server is not None and getattr(server, "_forkserver_pid", None) is not None:
        _forget(server)


def _forget(server: Any) -> None:  # noqa: ANN401
    """In a bare fork (os.fork): forget the parent's server, so that this process starts its own.

    Otherwise multiprocessing would take the parent's server for a child of this process, and starting another
    one would fail for ever. The descriptor that keeps that server alive is closed.
    """
    alive = server._forkserver_alive_fd
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    server._inherited_fds = None
    # A thread of the parent may have held the lock.
    server._lock = threading.Lock()
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the fork server of multiprocessing, unless it is running, and have it import modules of mpkit.

    This returns at once, while the server is starting up. It does not interfere with the application: modules
    that the application has asked the server to import are imported first; what it asks for later takes
    effect in a server that is started later, as always. The application's own children only find more modules
    loaded, all of which their main process has loaded, too. A server that is running already is left
    unchanged.

    A Ctrl-C while the server starts does not end it, nor does a client that dies while it talks to the
    server: see `mpkit._platform.stdlib.server_mask` and `mpkit._platform.stdlib.server_clients`.

    Args:
        modules: Modules that the server's children need, besides those of mpkit that the program has loaded
            by now. A child then starts without importing anything.

    Raises:
        OSError: The system refuses a process or descriptors.
        RuntimeError: A signal handler or a `__del__` calls this while its thread is talking to the server.
    """
    from multiprocessing import forkserver  # noqa: PLC0415  POSIX only

    server: Any = vars(forkserver)["_forkserver"]
    its_class: Any = vars(forkserver)["ForkServer"]
    # A signal handler cannot wait for locks that its own thread has. And the server, which talks to one
    # client at a time, may be waiting for the rest of what this thread is sending.
    talks = its_class.ensure_running, its_class.connect_to_new_process
    if _starting_server.is_owned() or any(map(_is_being_executed, talks)):
        raise RuntimeError(
            "this thread is already talking to the fork server of multiprocessing (this was called by a "
            "signal handler or a __del__): start the process in another thread, later, or by another method"
        )
    # Deferred, because multiprocessing takes a lock in a `with` block, which an interrupt may leave locked.
    with deferred_interrupts():
        try:
            _starting_server.run(_ensure_running, server, modules)
        except ChildProcessError:
            # The server is the parent's: this module was not loaded at the fork, so it has not been
            # forgotten.
            _forget(server)
            _starting_server.run(_ensure_running, server, modules)


def _ensure_running(server: Any, modules: Sequence[str]) -> None:  # noqa: ANN401
    if sys.platform == "win32":
        return  # there is no fork server
    before: list[str] = server._preload_modules
    with_ours = [*before, *modules]
    is_blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # From 3.15 on the application may have set that an import error ends the server; then nothing is added.
    polite = getattr(server, "_preload_on_error", "ignore") == "ignore"
    # Up to Python 3.10.8 the server would listen at an abstract socket, through which any user of the machine
    # can run code in it (CVE-2022-42919). Later versions do not use this setting.
    setattr(util, "abstract_sockets_supported", False)  # noqa: B010  a constant for type checkers
    try:
        with starting_by("forkserver"):
            # Otherwise the server would start the tracker, in the ordinary way; and before 3.12 that would
            # leave SIGINT unblocked.
            start_tracker()
            if server._forkserver_pid is None and polite and _is_found_by_every_interpreter():
                server._preload_modules = with_ours
                with_ours += ("mpkit._platform.stdlib.server_clients", *_FOR_EVERY_CHILD)
                with_ours += (name for name in _TAKEN if name in sys.modules)
                if not is_blocked:
                    with_ours.append("mpkit._platform.stdlib.server_mask")
                    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            if server._forkserver_pid is None:
                _keep_address_short()
            server.ensure_running()
    finally:
        # Unless another thread has just set another list.
        if server._preload_modules is with_ours:
            server._preload_modules = before
        # Last, because a Ctrl-C that was blocked arrives here.
        if not is_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _keep_address_short() -> None:
    """Before 3.14: choose another directory if the temporary one has too long a name, as on CI systems."""
    if sys.version_info >= (3, 14):
        return
    import tempfile  # noqa: PLC0415  multiprocessing imports it only here, too

    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_DIRECTORY:
        before = tempfile.tempdir
        try:
            tempfile.tempdir = "/tmp"  # noqa: S108  as 3.14 does; what is made there is for this user only
            util.get_temp_dir()
        finally:
            tempfile.tempdir = before


def _is_being_executed(function: Any) -> bool:  # noqa: ANN401
    """Whether this thread is inside this function; the lock that is held there does not know its owner."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _is_found_by_every_interpreter() -> bool:
    """Whether ``import mpkit`` finds this very package in a new interpreter, too.

    Before 3.14 the fork server does not get our `sys.path`. If it found another mpkit first (in the current
    directory, say), all its children would have that one.
    """
    if sys.flags.no_site or sys.flags.isolated or sys.flags.ignore_environment:
        return False
    import site  # noqa: PLC0415  nearly every interpreter has loaded it at its start, but not all

    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sites = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    places = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sites]
    for place in places:
        if place and os.path.exists(os.path.join(place, "mpkit")):
            return os.path.realpath(place) == os.path.realpath(home)
    # It is in none of these: then one of the .pth files, by which `site` adds directories, must name its
    # directory.
    return any(home in _directories_added_in(place) for place in sites)


def _directories_added_in(place: str) -> list[str]:
    """The directories that the .pth files in `place` add to `sys.path`."""
    from mpkit._platform.resources.cgroups import lines_of  # noqa: PLC0415  needed once in a program, by the parent

    with contextlib.suppress(OSError):
        return [
            line.strip()
            for name in os.listdir(place)
            if name.endswith(".pth")
            for line in lines_of(os.path.join(place, name))
        ]
    return []
