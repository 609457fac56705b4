"""Starting the fork server of multiprocessing with modules of ours, and taking nothing from the application.

Private are the server's object, ``forkserver._forkserver``, and its list of modules: the public
`set_forkserver_preload` replaces what the application has asked for, and does not tell what that was.
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

__all__ = ["start_fork_server"]

#: What a program may take from mpkit. If it has by now, most likely its main module has, which its children
#: import.
_TAKEN: Final = ("mpkit.pool._facade", "mpkit.process.worker", "mpkit.queue", "mpkit.sync", "mpkit.compat")
#: What every child comes to import by itself: for the descriptors that it gets, and for the main module. (The
#: first use of the compiler, for the text of that, makes the classes of all syntax trees: a millisecond.)
_FOR_EVERY_CHILD: Final = ("multiprocessing.popen_forkserver", "pkgutil", "_ast")

#: Of the 104 bytes of an address (on macOS; four more on Linux) 32 are needed for the names in the directory.
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
    """In a bare fork (os.fork) the parent's server counts as a child of this process, and asking for another
    one fails for ever. It is forgotten, with the descriptor that keeps it alive: this process starts its own.
    """
    alive = server._forkserver_alive_fd
    server._forkserver_pid = server._forkserver_alive_fd = server._forkserver_address = None
    server._inherited_fds = None
    # Another thread may have been at it; its lock is that thread's.
    server._lock = threading.Lock()
    if alive is not None:
        with contextlib.suppress(OSError):
            os.close(alive)


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the fork server of multiprocessing, unless it runs, and have it import modules of ours first.

    Returns at once: the server comes up while the caller goes on. It takes nothing from the application: what
    that has asked the server to import is imported as well, and before; what it asks for later holds for a
    server that is started later, as ever. Its own children merely find modules loaded that its main process
    has loaded too. A server that runs already stays as it is.

    A Ctrl-C while it starts does not end it, nor does a client that dies while it asks: see
    `mpkit._platform.stdlib.server_mask` and `mpkit._platform.stdlib.server_clients`.

    Args:
        modules: What its children need, besides what the program has taken from mpkit by now; a child then
            starts without importing anything.

    Raises:
        OSError: The system refuses a process or descriptors.
        RuntimeError: A signal handler or a `__del__` has called this while its thread was doing the same.
    """
    from multiprocessing import forkserver  # noqa: PLC0415  POSIX only

    server: Any = vars(forkserver)["_forkserver"]
    its_class: Any = vars(forkserver)["ForkServer"]
    # Whoever has come in between cannot wait for the locks of its own thread.
    # The server, which listens to one at a time, may be waiting for the rest of what that is telling it.
    talks = its_class.ensure_running, its_class.connect_to_new_process
    if _starting_server.is_owned() or any(map(_is_being_executed, talks)):
        raise RuntimeError(
            "this thread is already talking to the fork server of multiprocessing (this was called by a "
            "signal handler or a __del__): start the process in another thread, later, or by another method"
        )
    # Among the locks is one of multiprocessing, in a `with` block, which an interrupt may leave locked.
    with deferred_interrupts():
        try:
            _starting_server.run(_ensure_running, server, modules)
        except ChildProcessError:
            # It is the parent's, and this module was not there at the fork.
            _forget(server)
            _starting_server.run(_ensure_running, server, modules)


def _ensure_running(server: Any, modules: Sequence[str]) -> None:  # noqa: ANN401
    if sys.platform == "win32":
        return  # there is none
    before: list[str] = server._preload_modules
    with_ours = [*before, *modules]
    is_blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    # On 3.15 the application may have asked that a module which cannot be imported ends the server.
    polite = getattr(server, "_preload_on_error", "ignore") == "ignore"
    # Up to Python 3.10.8 the server would listen at an abstract socket, through which any user of the machine
    # can run code in it (CVE-2022-42919). Later ones do not ask.
    setattr(util, "abstract_sockets_supported", False)  # noqa: B010  a constant for type checkers
    try:
        with starting_by("forkserver"):
            # The server does it otherwise, without what ours does; and before 3.12 that leaves SIGINT
            # unblocked.
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
        # Unless another thread has just asked for others.
        if server._preload_modules is with_ours:
            server._preload_modules = before
        # Last: a Ctrl-C that has waited comes here.
        if not is_blocked:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _keep_address_short() -> None:
    """Before 3.14 the server cannot listen in a temporary directory with a long name, as CI systems have."""
    if sys.version_info >= (3, 14):
        return
    import tempfile  # noqa: PLC0415  multiprocessing imports it for the address, and only then

    if len(os.fsencode(tempfile.gettempdir())) > _LONGEST_DIRECTORY:
        before = tempfile.tempdir
        try:
            tempfile.tempdir = "/tmp"  # noqa: S108  as 3.14 does; what is made there is for this user only
            util.get_temp_dir()
        finally:
            tempfile.tempdir = before


def _is_being_executed(function: Any) -> bool:  # noqa: ANN401
    """Whether this thread is inside this function: the lock that is held there does not tell whose it is."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


def _is_found_by_every_interpreter() -> bool:
    """Whether ``import mpkit`` means this very package in a new interpreter, too.

    Before 3.14 the fork server does not get our `sys.path`. Should it find another mpkit first (in the
    current directory, say), all its children would have that one.
    """
    if sys.flags.no_site or sys.flags.isolated or sys.flags.ignore_environment:
        return False
    import site  # noqa: PLC0415  loaded at the start of nearly every interpreter, but not of all

    home = os.path.dirname(os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
    sites = [*site.getsitepackages(), *([site.getusersitepackages()] if site.ENABLE_USER_SITE else [])]
    places = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep), *sites]
    for place in places:
        if place and os.path.exists(os.path.join(place, "mpkit")):
            return os.path.realpath(place) == os.path.realpath(home)
    # Not there: then one of the files by which `site` adds directories has to name it.
    return any(home in _directories_added_in(place) for place in sites)


def _directories_added_in(place: str) -> list[str]:
    from mpkit._platform.resources.cgroups import lines_of  # noqa: PLC0415  asked once in a program, by the parent

    with contextlib.suppress(OSError):
        return [
            line.strip()
            for name in os.listdir(place)
            if name.endswith(".pth")
            for line in lines_of(os.path.join(place, name))
        ]
    return []
