"""Starting processes so that they always end, whatever the test does."""

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
    """Run the block with `processes` started; when it is left, each one is dead and joined.

    A process that ends within the time is joined quietly; after an exception in the block all are killed.
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
    """Whether no process `pid` runs any more. A zombie does not run."""
    try:
        return psutil.Process(pid).status() in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return True


def wait_gone(*pids: int, timeout: float = PATIENCE) -> None:
    """Wait until none of `pids` runs any more."""
    for pid in pids:
        wait_until(lambda pid=pid: gone(pid), f"process {pid} has ended", timeout=timeout)  # type: ignore[misc]


@contextmanager
def to_be_killed() -> Iterator[dict[str, str]]:
    """The environment for a program that is killed in this block: its temporary files are removed after it.

    multiprocessing has a directory there (``pymp-…``) which a killed program leaves behind. The name is
    short: the path of a socket in it may have some 100 characters.
    """
    with TemporaryDirectory(prefix="kill-", ignore_cleanup_errors=True) as temporary:
        yield {"TMPDIR": temporary}


@contextmanager
def python(
    *arguments: str | os.PathLike[str], env: Mapping[str, str] | None = None, **options: Any
) -> Iterator[subprocess.Popen[str]]:
    """A fresh interpreter with `arguments`, in a process group of its own, its output in text pipes.

    For what must not happen in the process of the tests: Ctrl-C, a SIGKILL of the parent, an import from
    cold. When the block is left, whatever remains of the group is killed and the process is waited for.
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
        # That all of the group have ended and been waited for is what a test should reach.
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
    """Run `work` in a forked child; the exit code, negative for a signal."""
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
