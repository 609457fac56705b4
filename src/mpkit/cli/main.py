"""The command line: the list of commands, and how errors and Ctrl-C are handled."""

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

#: The exit code after Ctrl-C: what a shell reports for a program that SIGINT has ended (128 + SIGINT).
INTERRUPTED = 130
#: The exit code if the reader of the output has gone: what a shell reports after SIGPIPE (128 + SIGPIPE).
READER_GONE = 141


class _Parser(argparse.ArgumentParser):
    """A parser that raises `OutputError` if the help cannot be printed; argparse itself ignores that."""

    @override
    def print_help(self, file: SupportsWrite[str] | None = None) -> None:  # noqa: ARG002  it gives none
        _tell(self.format_help())


class _Version(argparse.Action):
    """Prints the version, and exits."""

    @override
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        _tell(f"mpkit {mpkit.__version__}")
        parser.exit()


def _tell(text: str) -> None:
    _output.check()
    _output.show(text.rstrip("\n"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        arguments: the words after ``python -m mpkit``. None, the default: those in `sys.argv`.

    Returns:
        The exit code: 0 on success, 1 on failure, 130 after Ctrl-C, and 141 if the
            reader of the output has gone.

    Raises:
        SystemExit: after printing help, the version (exit code 0), or what is wrong with the arguments (2).
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
        # If the help or the version cannot be printed, this raises an error.
        _output.flush()
        raise
    if options.command is None:
        # argparse would only say that a command is missing, and not which ones there are.
        _output.complain(parser.format_help().rstrip("\n"))
        raise SystemExit(2)
    return options


def _run(name: str, options: argparse.Namespace) -> int:
    _output.check()
    try:
        identity.current()
    except RuntimeError as error:
        # There is no /proc (in a chroot, say), and no command can do anything.
        _output.complain(f"{name}: {error}")
        return 1
    try:
        return int(options.run(options))
    except MpkitError as error:
        _output.complain(f"{name}: {_text.visible_lines(_message(error))}")
        return 1


def _message(error: MpkitError) -> str:
    # The text of an OSError begins with "[Errno 3]", which says nothing to people.
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
