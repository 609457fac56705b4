"""The command line: which commands there are, and what becomes of errors and of Ctrl-C."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

import mpkit
from mpkit._platform.hints import override
from mpkit._platform.processes import identity
from mpkit.cli import _output, _text, ps, stacks, top
from mpkit.cli.demo import command as demo
from mpkit.cli.doctor import command as doctor
from mpkit.errors import MpkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from _typeshed import SupportsWrite

#: What a shell reports for a program that Ctrl-C ended (128 + SIGINT).
INTERRUPTED = 130
#: What a shell reports for a program whose reader went away (128 + SIGPIPE).
READER_GONE = 141


class _Parser(argparse.ArgumentParser):
    """Help that does not arrive is an error, as any other output; argparse itself passes over it."""

    @override
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:  # noqa: ARG002  it gives none
        _tell(self.format_help())


class _Version(argparse.Action):
    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        _tell(f"mpkit {mpkit.__version__}")
        parser.exit()


def _tell(text: str) -> None:
    _output.check()
    _output.show(text.rstrip("\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code.

    It is 0 when it is done, 1 when it failed, 2 for wrong arguments, 130 after Ctrl-C, and 141 when whoever
    reads its output went away.

    Args:
        arguments: the words after ``python -m mpkit``. None, the default, takes them from `sys.argv`.

    Raises:
        SystemExit: from argparse, after it has printed help or what is wrong with the arguments.
    """
    _output.prepare()
    parser = _parser()
    name = parser.prog
    try:
        options = _parsed(parser, arguments)
        name = f"{name} {options.command}"
        code = _run(name, options)
        _output.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except _output.OutputError as lost:
        _output.drop()
        if isinstance(lost.reason, BrokenPipeError):
            # As in `mpkit ps | head`.
            return READER_GONE
        _output.complain(f"{name}: {lost}")
        return 1
    return code


def _parsed(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> argparse.Namespace:
    try:
        options = parser.parse_args(arguments)
    except SystemExit:
        # What help there is has to arrive.
        _output.flush()
        raise
    if options.command is None:
        # Argparse would only say that one is missing, and not which there are.
        _output.complain(parser.format_help().rstrip("\n"))
        raise SystemExit(2)
    return options


def _run(name: str, options: argparse.Namespace) -> int:
    _output.check()
    try:
        identity.current()
    except RuntimeError as error:
        # A chroot without /proc: no command can do anything there.
        _output.complain(f"{name}: {error}")
        return 1
    try:
        return int(options.run(options))
    except MpkitError as error:
        _output.complain(f"{name}: {_text.visible_lines(_message(error))}")
        return 1


def _message(error: MpkitError) -> str:
    # An OSError's own text starts with "[Errno 3]", which says nothing to a person.
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mpkit",
        description="Look at running processes, pools and queues; try out mpkit; check this machine.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    for module in (ps, top, stacks, demo, doctor):
        module.add_to(commands)
    return parser
