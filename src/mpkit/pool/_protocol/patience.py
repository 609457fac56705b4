"""How long a worker, or a thread that waits for it, looks again and again before it sleeps.

A partner that runs on another core answers within microseconds, sooner than a sleeper wakes. But where other
programs want the cores as well, the partner may wait for the very core that the looking keeps busy: then each
answer takes two rounds of vain looking, and sleeping at once is several times faster. Which of the two it is
can only be tried: every so many waits one is as patient as can be, and whether that pays decides about the
next ones.

(How short the sleep was afterwards tells nothing: the partner answers quickly as soon as it gets the core.)
"""

from __future__ import annotations

from mpkit._shm.locks.spin import SpinBudget

_FEWEST_LOOKS = 48
#: Every 32nd wait is a trial.
_TRIAL = 31


class Patience:
    """How many looks the next wait may take: halved when all were in vain, 0 after a few times."""

    __slots__ = ("_looks", "_most", "_waits")

    def __init__(self) -> None:
        # 0 where there is one usable CPU.
        self._most = self._looks = SpinBudget().looks
        self._waits = 0

    def looks(self, *, partner_looks: bool = False) -> int:
        """For one wait.

        Args:
            partner_looks: The partner has just been found awake: a good moment to try.
        """
        self._waits += 1
        return self._looks if self._waits & (_TRIAL >> 3 if partner_looks else _TRIAL) else self._most

    def paid(self) -> None:
        """A look has succeeded."""
        self._looks = self._most

    def failed(self) -> None:
        """All looks of a wait were in vain."""
        looks = self._looks >> 1
        self._looks = looks if looks >= _FEWEST_LOOKS else 0
