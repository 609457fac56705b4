"""What is known about a function that tasks call: how a worker gets it, and how long it has been taking; so
how much of it is sent at once.
"""

from __future__ import annotations

#: Work that a worker is given in advance.
AHEAD_NS = 15_000_000
#: Tasks that a worker is given in advance at most; several times as many short records fit into an inbox.
MOST_AHEAD = 256
#: Short items of a lazy map are sent in groups that take about this long: so long that sending one costs
#: little beside it, and so short that an item that takes unexpectedly long holds up little.
GROUP_NS = 250_000


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

    def took_chunk(self, run_ns: int, items: int) -> None:
        """A chunk of so many calls ran for `run_ns`: that says little about how long a single task takes,
        unless it was a single one.
        """
        if items == 1:
            self.took(run_ns)


class GroupedFunction(Function):
    """The function of one lazy map, whose items are sent in groups as long as they are short.

    Args:
        known: what is known about the function from other tasks.
        most: the most items of a group.

    Attributes:
        size: of how many items the next group is to be.
    """

    __slots__ = ("_known", "most", "size")

    def __init__(self, known: Function, most: int) -> None:
        super().__init__(known.name, known.blob)
        self._known = known
        self.most: int = most
        self.size: int = 1
        if known.mean_ns >= 0:
            self._see(known.mean_ns)

    def took(self, run_ns: int) -> None:
        """An item ran for `run_ns`, alone or on average."""
        # The next map need not find out again.
        self._known.took(run_ns)
        self._see(run_ns)

    def _see(self, run_ns: int) -> None:
        super().took(run_ns)
        mean = max(self.mean_ns, 1)
        self.size = max(1, min(self.most, GROUP_NS // mean))
        self.ahead: int = min(MOST_AHEAD, 1 + AHEAD_NS // (mean * self.size))

    def took_chunk(self, run_ns: int, items: int) -> None:
        """A group of so many items ran for `run_ns`."""
        self.took(run_ns // items)
