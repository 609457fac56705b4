"""`python -m mpkit`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line with the arguments of this process and return its exit code."""
    # Child processes that are started afresh import this module as the parent's main module: it stays as
    # light as it is.
    try:
        from mpkit.cli.main import main as run  # noqa: PLC0415
    except KeyboardInterrupt:
        return 130
    return run()


if __name__ == "__main__":
    sys.exit(main())
