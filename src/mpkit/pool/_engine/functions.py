"""What is known about a function that tasks call: its pickle, and how long its calls take."""

from __future__ import annotations

#: How much work a worker is given in advance.
AHEAD_NS = 15_000_000
#: The most tasks that a worker is given in advance. An inbox has room for several times as many.
MOST_AHEAD = 256
#: Short items of a lazy map are sent in groups that take about this long: long enough that the cost of
#: sending a group is small in comparison, and so short that an item that takes
#: unexpectedly long delays little work.
GROUP_NS = 250_000


class Function:
    """What is known about a function that tasks call.

    Attributes:
        name: its name in messages.
        blob: its pickle, if it is pickled by name; else empty.
        mean_ns: how long its calls have been taking; -1: none has ended yet.
        ahead: how many tasks of this function a worker may have at once.
    """

    __slots__ = ("ahead", "blob", "mean_ns", "name")

    def __init__(self, name: str, blob: bytes) -> None:
        self.name: str = name
        self.blob: bytes = blob
        self.mean_ns: int = -1
        self.ahead: int = 1

    def took(self, run_ns: int) -> None:
        """A task of this function ran for `run_ns`."""
        mean = self.mean_ns
        if mean < 0:
            mean = run_ns
        else:
            # A moving average: each task counts for an eighth. And for no more than four times the mean,
            # because one slow task among many fast ones must not stop tasks from being sent ahead.
            mean += (min(run_ns, 4 * mean + 10_000) - mean) >> 3
        self.mean_ns = mean
        self.ahead = MOST_AHEAD if mean * MOST_AHEAD <= AHEAD_NS else 1 + AHEAD_NS // mean

    def took_chunk(self, run_ns: int, items: int) -> None:
        """A chunk of so many items ran for `run_ns`. Unless it had only one, that says little about tasks."""
        if items == 1:
            self.took(run_ns)


class GroupedFunction(Function):
    """The function of one lazy map, whose items are sent in groups as long as they are short.

    Args:
        known: what is known about the function from other tasks; it learns from this map as well.
        most: the largest number of items in a group.

    Attributes:
        size: how many items the next group is to have.
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
        """An item ran for `run_ns`, by itself or on the average of its group."""
        # So that the next map of the same function need not measure it again.
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
