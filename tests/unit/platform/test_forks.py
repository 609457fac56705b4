"""Fork hooks are run to their end, even if Ctrl-C comes in the middle of them."""

from __future__ import annotations

import sys
import textwrap

import pytest

from tests.helpers.processes import run_python

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="forks")


def test_an_interrupt_in_a_hook_does_not_skip_the_rest_in_a_child() -> None:
    """Python drops what a hook raises. Otherwise the child would then go on as if it were its parent."""
    printed = run_python(
        "-c",
        textwrap.dedent("""
        import os, sys
        from mpkit._platform.threads import forks

        calls = []

        def forget():
            calls.append(os.getpid())
            if len(calls) == 1:
                raise KeyboardInterrupt

        sys.unraisablehook = lambda report: None
        forks.in_forked_children(forget)
        pid = os.fork()
        if not pid:
            print(len(calls), flush=True)
            pid = os.fork()
            if not pid:
                # A child does it once, if nothing interrupts it.
                print(len(calls), flush=True)
                os._exit(0)
            os.waitpid(pid, 0)
            os._exit(0)
        os.waitpid(pid, 0)
        print(len(calls), flush=True)
        """),
    ).stdout
    assert printed.split() == ["2", "3", "0"]


def test_a_thread_that_forks_while_it_holds_the_lock_holds_it_in_the_child_too() -> None:
    """A signal handler may fork anywhere, and then the interrupted code goes on in both processes."""
    printed = run_python(
        "-c",
        textwrap.dedent("""
        import os, threading
        from mpkit._platform.threads import forks

        lock = threading.RLock()
        forks.held_across_forks(lock)
        with lock:
            pid = os.fork()
            if pid:
                os.waitpid(pid, 0)
        print(lock._is_owned(), flush=True)
        """),
    ).stdout
    assert printed.split() == ["False", "False"]


def test_a_lock_that_could_not_be_acquired_before_the_fork_is_free_in_the_child() -> None:
    """Its holder does not exist in the child, where otherwise everybody would wait for the lock for ever."""
    printed = run_python(
        "-c",
        textwrap.dedent("""
        import functools, os, signal, sys, threading
        from mpkit._platform.threads import forks

        lock, taken, go = threading.RLock(), threading.Event(), threading.Event()
        forks.held_across_forks(lock)

        def hold():
            with lock:
                taken.set()
                go.wait()

        threading.Thread(target=hold).start()
        taken.wait()
        sys.unraisablehook = lambda report: None
        # Raises in the hook that waits for the lock; the fork goes on all the same.
        forking = []

        def end_waiting(*_):
            if forking:
                raise KeyboardInterrupt

        os.register_at_fork(
            before=functools.partial(forking.append, True),
            after_in_parent=forking.clear,
            after_in_child=forking.clear,
        )
        signal.signal(signal.SIGALRM, end_waiting)
        signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)
        pid = os.fork()
        if not pid:
            print(lock.acquire(blocking=False), flush=True)
            os._exit(0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        os.waitpid(pid, 0)
        go.set()
        """),
        # Python warns of a fork in a process with threads.
        env={"PYTHONWARNINGS": "ignore"},
    ).stdout
    assert printed.split() == ["True"]


def test_an_interrupt_during_a_fork_leaves_no_lock_taken() -> None:
    """Otherwise other threads would wait for ever for the lock that is held during forks."""
    printed = run_python(
        "-c",
        textwrap.dedent("""
        import functools, os, signal, sys, threading

        # Python calls the handler at the first step of the next hook that is Python code.
        os.register_at_fork(after_in_parent=functools.partial(signal.raise_signal, signal.SIGINT))
        from mpkit import Lock
        from mpkit._platform.files import filelock

        sys.unraisablehook = lambda report: None
        try:
            pid = os.fork()
            if not pid:
                os._exit(0)
            os.waitpid(pid, 0)
        except KeyboardInterrupt:
            pass
        print(filelock._opening.is_owned())
        taken = []
        other = threading.Thread(target=lambda: taken.append(Lock().acquire()), daemon=True)
        other.start()
        other.join(30)
        print(taken)
        """),
    ).stdout
    assert printed.split() == ["False", "[True]"]
