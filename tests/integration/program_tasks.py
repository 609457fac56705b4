"""Tasks that start programs. They are in a module without tests because workers import it."""

from __future__ import annotations

import multiprocessing
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import forkserver
from pathlib import Path

from mpkit.pool import TaskPool

# Writes its pid when it is ready, then sleeps. Arguments: the file to write to, and the signals to ignore.
_LASTS = """
import os, signal, sys, time
for name in sys.argv[2:]:
    signal.signal(getattr(signal, name), signal.SIG_IGN)
with open(sys.argv[1] + ".new", "w") as file:
    file.write(str(os.getpid()))
os.replace(sys.argv[1] + ".new", sys.argv[1])
time.sleep(600)
"""


def command(path: str, *ignored: str) -> list[str]:
    return [sys.executable, "-S", "-c", _LASTS, path, *ignored]


def run(path: str, *ignored: str) -> None:
    subprocess.run(command(path, *ignored), check=False)


def run_when(there: str, path: str = "") -> int:
    """As soon as there is a file `there`; without a path it does nothing else."""
    while not os.path.exists(there):
        time.sleep(0.01)
    return subprocess.run(command(path), check=False).returncode if path else 0


def run_shell(path: str, *ignored: str) -> None:
    """Run the program under a shell: when `subprocess.run` is interrupted, it kills only the shell."""
    subprocess.run(f"{shlex.join(command(path, *ignored))} | cat; exit 0", shell=True, check=False)


def run_trapping_shell(path: str, *ignored: str) -> None:
    subprocess.run(
        f"trap '' TERM INT; {shlex.join(command(path, *ignored))}; exit 0", shell=True, check=False
    )


def system(path: str, *ignored: str) -> None:
    """Run the program with `os.system`, which ignores SIGINT meanwhile, so Ctrl-C cannot interrupt it."""
    os.system(f"{shlex.join(command(path, *ignored))}; exit 0")


def start_and_wait(path: str, *ignored: str) -> None:
    with suppress(KeyboardInterrupt):
        subprocess.Popen(command(path, *ignored))
        time.sleep(600)


def start_and_hold_out(path: str, *ignored: str) -> None:
    subprocess.Popen(command(path, *ignored))
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(600)


def start_and_clean_up(path: str, interrupted: str, cleaned: str) -> None:
    """Go on when interrupted (after touching `interrupted`); when terminated, touch `cleaned` and end."""

    def clean_up(_signum: int, _frame: object) -> None:
        Path(cleaned).touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, clean_up)
    start_and_wait(path)
    # The test waits for this file before it has SIGTERM sent: Python may lose one of two signals that come at
    # the same moment.
    Path(interrupted).touch()
    time.sleep(600)


def fork(path: str, *ignored: str) -> None:
    if os.fork() == 0:
        last(path, *ignored)
    time.sleep(600)


def last(path: str, *ignored: str) -> None:
    for name in ignored:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    Path(path + ".new").write_text(str(os.getpid()))
    os.replace(path + ".new", path)
    while True:
        with suppress(KeyboardInterrupt):
            time.sleep(600)


def child(path: str, *ignored: str) -> None:
    """Start a process of multiprocessing, which the worker would join at its own end."""
    process = multiprocessing.get_context("forkserver").Process(target=last, args=(path, *ignored))
    process.start()
    process.join()


def nested(path: str, *ignored: str) -> None:
    with TaskPool(1) as pool:
        pool.submit(run, path, *ignored).result()


def start(path: str) -> int:
    """Start a program that ignores SIGINT and is meant to outlive the task."""
    return subprocess.Popen(command(path, "SIGINT")).pid


def fork_server() -> int | None:
    """Return the pid of this worker's fork server, if it has one."""
    pid: int | None = forkserver._forkserver._forkserver_pid  # type: ignore[attr-defined]
    return pid


STARTERS: tuple[Callable[..., None], ...] = (
    run,
    run_shell,
    run_trapping_shell,
    system,
    start_and_wait,
    start_and_hold_out,
    fork,
    child,
    nested,
)
