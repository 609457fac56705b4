"""`python -m mpkit top [PID]`: what `ps` shows, again and again, with the present CPU load."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

from mpkit import introspect
from mpkit.cli import _arguments, _render
from mpkit.errors import ProcessGone
from mpkit.introspect import _segments

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from mpkit.introspect import ProcessSnapshot


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "top",
        help="show a program's processes, pools and queues, again and again",
        description="Show what `ps` shows, again and again, with the present CPU load, until Ctrl-C.",
    )
    parser.add_argument(
        "pid",
        nargs="?",
        type=_arguments.pid,
        metavar="PID",
        help="the process on top; without it, every program of this user that uses mpkit",
    )
    parser.add_argument(
        "--interval",
        type=_arguments.seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks (%(default)s)",
    )
    parser.add_argument(
        "--count", type=_arguments.positive, metavar="N", help="end after so many looks; by default at Ctrl-C"
    )
    parser.add_argument(
        "--plain", action="store_true", help="print one page below the other, as without a terminal"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Show pages until the program is gone, or as often as was asked for."""
    pages = _pages(options.pid, options.interval, options.count)
    return _print_all(pages) if options.plain or not sys.stdout.isatty() else _show_live(pages)


def _pages(pid: int | None, interval: float, count: int | None) -> Iterator[str]:
    """One page of text for each look."""
    load = _Load()
    due = time.monotonic()
    looks = 0
    while count is None or looks < count:
        if looks:
            due = max(due + interval, time.monotonic())
            # A look is due at a moment, not at an event.
            time.sleep(max(due - time.monotonic(), 0.0))
        roots = [pid] if pid is not None else _segments.programs()
        programs: list[str] = []
        for root in roots:
            try:
                tree = introspect.tree(root)
                percent = load.since_last_look(list(tree.walk()))
                programs.append("\n".join(_render.program(tree, now=time.time(), cpu_percent=percent)))
            except ProcessGone:
                if pid is None:
                    # One of several programs has just ended.
                    continue
                if not looks:
                    raise
                return
        looks += 1
        yield "\n\n".join(programs) or "No process of this user has an mpkit pool or queue open."


class _Load:
    """Turns CPU seconds since the start of a process into its CPU share since the look before."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, float], tuple[float, float]] = {}

    def since_last_look(self, processes: list[ProcessSnapshot]) -> dict[int, float]:
        """The share of each process, in percent of one core, by pid; new ones are left out."""
        now = time.monotonic()
        shares: dict[int, float] = {}
        for process in processes:
            who = (process.pid, process.create_time)
            before = self._seen.get(who)
            if before is not None and now > before[0]:
                shares[process.pid] = 100.0 * (process.cpu_s - before[1]) / (now - before[0])
            self._seen[who] = (now, process.cpu_s)
        return shares


def _print_all(pages: Iterator[str]) -> int:
    for number, page in enumerate(pages):
        print(("\n" if number else "") + time.strftime("%H:%M:%S"))
        print(page, flush=True)
    return 0


def _show_live(pages: Iterator[str]) -> int:
    try:
        from rich.live import Live  # noqa: PLC0415  an extra
        from rich.text import Text  # noqa: PLC0415
    except ImportError:
        print('mpkit top: needs the package rich: pip install "mpkit[top]", or use --plain', file=sys.stderr)
        return 1
    # The alternative screen: what was in the terminal before comes back at the end.
    with Live(screen=True, auto_refresh=False) as screen:
        for page in pages:
            screen.update(Text(page, no_wrap=True, overflow="ellipsis"), refresh=True)
    return 0
