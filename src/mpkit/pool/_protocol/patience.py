"""How long a worker, or a thread that waits for workers, spins (checks again and again) before it sleeps.

A partner on another core answers within microseconds, which is sooner than a sleeping thread wakes up. But if
other programs use the cores as well, the partner may be waiting for the very core that the spinning keeps
busy. Then each answer takes two rounds of vain spinning, and sleeping at once is several times faster. Which
of the two is the case can only be found out by trying: every so many waits, one spins for as long as
possible, and its success decides about the next ones.

(How short the sleep after the spinning was says nothing: the partner answers quickly
as soon as it gets the core.)
"""

from __future__ import annotations

from mpkit._shm.locks.spin import SpinBudget

#: With fewer checks than this, spinning is not worth while.
_FEWEST_LOOKS = 48
#: A wait is a trial if these bits of its number are 0: every 32nd wait, ...
_TRIAL_MASK = 31
#: ... or every fourth, if the partner has just been found awake.
_EARLY_TRIAL_MASK = 3


class Patience:
    """How many checks the next wait may make before it sleeps: halved when all were in vain, down to 0."""

    __slots__ = ("_looks", "_most", "_waits")

    def __init__(self) -> None:
        # 0 if there is only one usable CPU.
        self._most = self._looks = SpinBudget().looks
        self._waits = 0

    def looks(self, *, partner_looks: bool = False) -> int:
        """How many checks the next wait may make.

        Args:
            partner_looks: The partner has just been found awake, so trials are more frequent.
        """
        self._waits += 1
        mask = _EARLY_TRIAL_MASK if partner_looks else _TRIAL_MASK
        return self._looks if self._waits & mask else self._most

    def paid(self) -> None:
        """A check has succeeded, so the wait need not sleep."""
        self._looks = self._most

    def failed(self) -> None:
        """All checks of a wait were in vain."""
        looks = self._looks >> 1
        self._looks = looks if looks >= _FEWEST_LOOKS else 0
