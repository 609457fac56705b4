"""Start processes in such a way that they always end, whatever the test does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing.process import BaseProcess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

from tests.helpers.waiting import PATIENCE, wait_until

__all__ = ["ROOT", "forked", "gone", "in_a_fork", "python", "reap", "run_python", "to_be_killed", "wait_gone"]

#: The root of the checkout: child interpreters start here, so `tests.…` can be imported.
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def reap(*processes: BaseProcess) -> Iterator[None]:
    """Start `processes` and run the block; at its end each of them has ended and has been joined.

    After the block, each process has `PATIENCE` seconds to end by itself, or the test fails. Whatever still
    runs then, or when the block raises, is killed.
    """
    try:
        for process in processes:
            process.start()
        yield
        for process in processes:
            process.join(PATIENCE)
            assert process.exitcode is not None, f"{process!r} did not end within {PATIENCE:g} s"
    finally:
        for process in processes:
            if process.ident is not None:
                process.kill()
                process.join()


def gone(pid: int) -> bool:
    """Whether the process `pid` has ended. A zombie has."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def wait_gone(*pids: int, timeout: float = PATIENCE) -> None:
    """Wait until all of `pids` have ended."""
    for pid in pids:
        wait_until(lambda pid=pid: gone(pid), f"process {pid} has ended", timeout=timeout)  # type: ignore[misc]


@contextmanager
def to_be_killed() -> Iterator[dict[str, str]]:
    """Give the block an environment for a program that will be killed; then remove its temporary files.

    The environment sets a temporary directory. A killed program leaves the directory of multiprocessing
    (``pymp-…``) behind in it. Its name is short because the path of a socket is limited to about 100
    characters.
    """
    with TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as temporary:
        yield {"TMPDIR": temporary}


@contextmanager
def python(
    *arguments: str | os.PathLike[str], env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A fresh interpreter with `arguments`, in a process group of its own, its output in text pipes.

    For what must not happen in the test process itself: Ctrl-C, a SIGKILL of the parent, a first import. At
    the end of the block, whatever remains of the group is killed and the process is reaped.
    """
    options.setdefault("stdin", subprocess.DEVNULL)
    options.setdefault("stdout", subprocess.PIPE)
    options.setdefault("stderr", subprocess.PIPE)
    process: subprocess.Popen[str] = subprocess.Popen(
        [sys.executable, *(os.fspath(argument) for argument in arguments)],
        text=True,
        cwd=options.pop("cwd", ROOT),
        env={**os.environ, **(env or {})},
        start_new_session=True,
        **options,
    )
    try:
        yield process
    finally:
        # In a good test the whole group has ended by now and been reaped: there is nothing to kill.
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        for stream in (process.stdin, process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def run_python(
    *arguments: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
    check: bool = True,
) -> subprocess.CompletedProcess[str]:
    """Run a fresh interpreter to its end and return its output.

    With `check`, an exit code other than 0 fails the test, and the output is shown.
    """
    with python(*arguments, env=env) as process:
        out, err = process.communicate(timeout=timeout)
    if check:
        assert process.returncode == 0, f"exit code {process.returncode}\n{_shown(arguments)}\n{out}\n{err}"
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def _shown(arguments: Sequence[object]) -> str:
    return " ".join(map(str, arguments))


def forked(work: Callable[[], object]) -> int:
    """Run `work` in a forked child and return its exit code: negative if a signal ended it."""
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def in_a_fork(check: Callable[[], bool]) -> bool:
    """Whether `check` returns true in a forked child."""

    def insist() -> None:
        assert check()

    return forked(insist) == 0
