"""Timeouts: checked where a caller gives them, and then converted to a deadline for the whole call."""

from __future__ import annotations

import math
from typing import Final, SupportsFloat

from mpkit._platform.messages import shown
from mpkit._platform.threads.clock import CLOCK

#: A moment that never comes.
NEVER: Final = math.inf


def check_timeout(timeout: SupportsFloat | None, *, name: str = "timeout") -> float | None:
    """Check a duration given by a caller.

    Args:
        timeout: Seconds; None or infinity: no limit; 0: do not wait.
        name: The caller's name for it, for the error message.

    Returns:
        The seconds as a float; None: no limit.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is negative or NaN.
    """
    if timeout is None:
        return None
    if isinstance(timeout, str | bytes | bytearray):
        # float() would convert these.
        raise _not_a_number(timeout, name)
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        raise _not_a_number(timeout, name) from None
    except OverflowError:
        # An int too large for a float: no limit, unless it is negative.
        seconds = math.inf if timeout > 0 else -math.inf  # type: ignore[operator]  # only an int gets here
    if seconds >= 0.0:
        return None if seconds == math.inf else seconds
    raise ValueError(
        f"{name} must be a number of seconds that is not negative, or None for no limit; got {shown(timeout)}"
    )


def not_negative(timeout: float | None) -> float | None:
    """The timeout, or 0 if it is negative: much of the standard library treats such a timeout as over.

    What cannot be compared with 0 stays as it is, for `check_timeout` to refuse.
    """
    try:
        return None if timeout is None else max(timeout, 0)
    except (TypeError, ArithmeticError):
        return timeout


def check_seconds(duration: SupportsFloat, *, name: str) -> float:
    """Check a duration given by a caller, which must be finite.

    Args:
        duration: Seconds.
        name: The caller's name for it, for the error message.

    Raises:
        TypeError: If it is not a number.
        ValueError: If it is negative, NaN, infinite or None.
    """
    # Not with the messages of `check_timeout`, which recommend None.
    wanted = f"{name} must be a finite number of seconds that is not negative; got {shown(duration)}"
    try:
        seconds = check_timeout(duration, name=name)
    except TypeError:
        raise TypeError(f"{wanted} ({type(duration).__name__})") from None
    except ValueError:
        seconds = None
    if seconds is None:
        raise ValueError(wanted)
    return seconds


def _not_a_number(timeout: object, name: str) -> TypeError:
    return TypeError(
        f"{name} must be a number of seconds or None for no limit; got {shown(timeout)} "
        f"({type(timeout).__name__})"
    )


def deadline_of(timeout: float | None) -> float | None:
    """The moment (on the monotonic clock) at which a checked timeout is over; None: never."""
    return None if timeout is None else CLOCK.monotonic() + timeout


def has_passed(deadline: float | None) -> bool:
    """Whether the deadline has passed; False for None."""
    return deadline is not None and CLOCK.monotonic() >= deadline


def remaining(deadline: float | None) -> float | None:
    """The seconds left until `deadline`, never negative; None: no limit."""
    return None if deadline is None else max(0.0, deadline - CLOCK.monotonic())
