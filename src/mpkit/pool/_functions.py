"""What is known about a function that tasks call: how a worker gets it, and how long it has been taking."""

from __future__ import annotations

#: Work that a worker is given in advance.
AHEAD_NS = 2_000_000
#: Tasks that a worker is given in advance at most; several times as many short records fit into an inbox.
MOST_AHEAD = 256


class Function:
    """What tasks call: its name, its pickle, and how long it has been taking.

    Attributes:
        name: for people.
        blob: how a worker gets it, where that is a name only.
        ahead: how many tasks of this kind a worker may have at once.
    """

    __slots__ = ("ahead", "blob", "mean_ns", "name")

    def __init__(self, name: str, blob: bytes) -> None:
        self.name: str = name
        self.blob: bytes = blob
        self.mean_ns: int = -1
        self.ahead: int = 1

    def took(self, run_ns: int) -> None:
        """A task of this kind ran for `run_ns`."""
        mean = self.mean_ns
        if mean < 0:
            mean = run_ns
        else:
            # One slow task among many fast ones must not stop the sending ahead: it counts as four times the
            # mean at most.
            mean += (min(run_ns, 4 * mean + 10_000) - mean) >> 3
        self.mean_ns = mean
        self.ahead = MOST_AHEAD if mean * MOST_AHEAD <= AHEAD_NS else 1 + AHEAD_NS // mean
