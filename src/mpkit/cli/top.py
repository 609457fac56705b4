"""`python -m mpkit top [PID]`: what `ps` shows, refreshed regularly, with current CPU load."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from mpkit.cli import _arguments, _output, _programs, _text
from mpkit.errors import ProcessGone
from mpkit.introspect import _watch
from mpkit.introspect._processes import share

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from mpkit.introspect import ProcessSnapshot

#: Terminals that cannot overwrite what they show.
_PAPER = frozenset({"dumb", "unknown"})


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="show a program's processes, pools and queues, refreshed regularly",
        description="Show what `ps` shows, refreshed regularly, with current CPU load, until Ctrl-C.",
    )
    _arguments.add_program_to(parser)
    parser.add_argument(
        "--interval",
        type=_arguments.seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two refreshes (%(default)s)",
    )
    parser.add_argument(
        "--count",
        type=_arguments.positive,
        metavar="N",
        help="stop after showing it N times; by default, at Ctrl-C",
    )
    parser.add_argument(
        "--plain",
        action="store_true",
        help="print one page below the other; this is the default without a terminal and with TERM=dumb",
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show one page after the other, until the program has ended or there have been `--count` pages."""
    pages = _pages(options.pid, options.interval, options.count)
    return _show_live(pages) if _has_a_screen() and not options.plain else _print_all(pages)


def _has_a_screen() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM", "").lower() not in _PAPER


def _pages(pid: int | None, interval: float, count: int | None) -> Iterator[str]:
    """Look at the programs every `interval` seconds, and yield a page of text each time."""
    load = _Load()
    due = time.monotonic()
    looks = 0
    while count is None or looks < count:
        if looks:
            due = max(due + interval, time.monotonic())
            _watch.sleep_until(due)
        try:
            programs = ["\n".join(lines) for lines in _programs.look(pid, load.since_last_look)]
        except ProcessGone:
            if not looks:
                raise
            # The program that was asked for has ended.
            return
        looks += 1
        yield "\n\n".join(programs) or _programs.NONE_FOUND


class _Load:
    """Computes the CPU share of processes since the previous look."""

    def __init__(self) -> None:
        # When each process (pid, start time) was seen last, and its CPU seconds then.
        self._seen: dict[tuple[int, float], tuple[float, float]] = {}

    def since_last_look(self, processes: list[ProcessSnapshot]) -> dict[int, float]:
        """The CPU share of each process, in percent of one core, by pid; new processes are left out."""
        now = time.monotonic()
        shares: dict[int, float] = {}
        for process in processes:
            who = (process.pid, process.create_time)
            before = self._seen.get(who)
            if before is not None and now > before[0]:
                shares[process.pid] = share(process.cpu_s - before[1], now - before[0])
            self._seen[who] = (now, process.cpu_s)
        return shares


def _print_all(pages: Iterator[str]) -> int:
    for number, page in enumerate(pages):
        if number:
            _output.show()
        width = _output.width()
        lines = [time.strftime("%H:%M:%S"), *(_text.shortened(line, width) for line in page.split("\n"))]
        _output.show("\n".join(lines), flush=True)
    return 0


def _show_live(pages: Iterator[str]) -> int:
    try:
        from rich.console import Console  # noqa: PLC0415  an extra
        from rich.live import Live  # noqa: PLC0415
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        _output.complain('mpkit top: needs the package rich: pip install "mpkit[top]", or use --plain')
        return 1
    console = Console()
    if not console.is_interactive:
        # An environment variable has told rich so; it would show nothing.
        return _print_all(pages)
    # On the alternative screen, so that at the end the terminal shows again what it showed before.
    screen = Live(console=console, screen=True, auto_refresh=False)
    try:
        with _output.writing():
            screen.start()
        for page in pages:
            with _output.writing():
                screen.update(Text(page, no_wrap=True, overflow="ellipsis"), refresh=True)
    finally:
        with _output.writing():
            screen.stop()
    return 0
