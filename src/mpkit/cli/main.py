"""The command line: which commands there are, and what becomes of errors and of Ctrl-C."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING

import mpkit
from mpkit.cli import ps, stacks, top
from mpkit.cli.demo import command as demo
from mpkit.cli.doctor import command as doctor
from mpkit.errors import MpkitError

if TYPE_CHECKING:
    from collections.abc import Sequence

#: What a shell reports for a program that Ctrl-C ended (128 + SIGINT).
INTERRUPTED = 130
#: What a shell reports for a program whose reader went away (128 + SIGPIPE).
READER_GONE = 141
#: What a write ends in when the disk is full, has failed, or the user has no more of it.
_NO_ROOM = frozenset({errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code: 0 done, 1 failed, 2 wrong arguments, 130 interrupted.

    Args:
        arguments: the words after ``python -m mpkit``. None, the default, takes them from `sys.argv`.

    Raises:
        SystemExit: from argparse, after it has printed help or what is wrong with the arguments.
    """
    options = _parser().parse_args(arguments)
    try:
        code = options.run(options)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # As in `mpkit ps | head`.
        _drop_output()
        return READER_GONE
    except MpkitError as error:
        print(f"mpkit {options.command}: {_message(error)}", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno not in _NO_ROOM or error.filename is not None:
            raise
        _drop_output()
        print(f"mpkit {options.command}: cannot write the output: {error.strerror}", file=sys.stderr)
        return 1
    return int(code)


def _drop_output() -> None:
    # The interpreter flushes stdout once more at exit: give it something that takes it.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _message(error: MpkitError) -> str:
    # An OSError's own text starts with "[Errno 3]", which says nothing to a person.
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mpkit",
        description="Look at processes and what they work on; try mpkit out; check this machine.",
    )
    parser.add_argument("--version", action="version", version=f"mpkit {mpkit.__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for module in (ps, top, stacks, demo, doctor):
        module.add_to(commands)
    return parser
