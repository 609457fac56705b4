"""How a worker does a chunk: many calls of one function, sent as one task."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import starmap
from typing import Any, NamedTuple, Protocol

from mpkit._platform.threads.clock import CLOCK
from mpkit._wire import codec, failure
from mpkit._wire.codec import Pickler
from mpkit.errors import SerializationError
from mpkit.pool._protocol import payload
from mpkit.pool._protocol.channel import BIG_PART, ITEM, PART, RESULT_HEAD, STAR, VALUE, Channel
from mpkit.pool._worker.bells import Bells
from mpkit.pool._worker.fork import end_fork
from mpkit.pool._worker.outbox import Outbox

#: A chunk of short items is worked on in blocks of about this length ...
_BLOCK_NS = 500_000
#: ... and hands in what it has this often.
_PART_NS = 2_000_000


class Host(Protocol):
    """The worker, as far as its chunks know it."""

    outbox: Outbox
    #: The parent has interrupted the task: what it raises from now on is no error of its own.
    stopping: bool
    #: This process is a fork of the worker.
    forked: bool


class ChunkRunner:
    """Calls the function for each item; an error fails its own item only."""

    def __init__(self, host: Host, channel: Channel, bells: Bells) -> None:
        self._host = host
        self._words = channel.words
        self._bells = bells
        # The items that are being worked on, all in one call of C code.
        self._block: list[Any] = []

    def drop_block(self) -> None:
        """In a fork of the worker: it is not to go on with them, should it come back from the task."""
        self._block.clear()

    def run(
        self,
        function: Callable[..., Any],
        items: Sequence[Any],
        number: int,
        flags: int,
        first: int,
        stop: int,
        pickler: Pickler,
    ) -> tuple[int, bytes]:
        """Call the function for the items from `first` to `stop`.

        The outcome: the list of results, and what went wrong at which index of it. While it works it says in
        the status row which items it has in hand, and hands in what it has every `_PART_NS`, so that its
        death costs as little as possible. Short items are worked on in blocks of about `_BLOCK_NS`: a store
        for each of them would cost more than they do.
        """
        words = self._words
        clock = CLOCK.monotonic_ns
        results: list[Any] = []
        errors: list[tuple[int, bytes]] = []
        base = at = first
        block = 1
        began = handed_in = clock()
        while True:
            end = min(at + block, stop)
            words[ITEM] = at << 32 | end
            # A list, which `drop_block` can empty, whatever the items are.
            self._block = list(items[at:end])
            self._run_block(function, self._block, flags, pickler, results, errors)
            at = end
            if at < stop:
                now = clock()
                took, began = now - began, now
                # Each item may take longer than the last one: the block grows fourfold at most.
                block = max(1, min(block << 2, block * _BLOCK_NS // (took or 1)))
                if now - handed_in <= _PART_NS:
                    continue
            for reached, kind, data in self._outcomes(base, results, errors, pickler):
                if reached == stop:
                    return kind, data
                self._hand_in(number, reached, kind, data)
            results, errors, base = [], [], at
            began = handed_in = clock()

    def run_each(
        self,
        function: Callable[..., Any],
        items: list[Any],
        number: int,
        first: int,
        stop: int,
        pickler: Pickler,
    ) -> tuple[int, bytes]:
        """Call the function for the items from `first` to `stop`, each as if it were a task of its own.

        Its result is in the outbox before the next one begins. So the death of this worker is the death of
        the item in hand alone, and nothing is done twice. The outcome is that of the last one.
        """
        words = self._words
        at = first
        while True:
            words[ITEM] = at << 32 | at + 1
            results: list[Any] = [None]
            errors: list[tuple[int, bytes]] = []
            try:
                results[0] = function(items[at])
            except BaseException as error:
                if self._host.stopping or self._host.forked:
                    # All of it.
                    raise
                errors.append((0, failure.pack_exception(error, pickler)))
            if self._host.forked:
                end_fork(None)
            # What has been worked on must not live on here while the next one is worked on.
            items[at] = None
            try:
                kind, data = payload.dump_chunk(results, errors, pickler)
            except BaseException as error:
                if self._host.stopping:
                    raise
                kind, data = self._dump_error(results[0], errors, error, pickler)
            at += 1
            if at == stop:
                return kind, data
            self._hand_in(number, at, kind, data)
            self._bells.ring_for_a_part(number)

    def _run_block(
        self,
        function: Callable[..., Any],
        items: list[Any],
        flags: int,
        pickler: Pickler,
        results: list[Any],
        errors: list[tuple[int, bytes]],
    ) -> None:
        """Call the function for each item, adding to `results`, and to `errors` what went wrong at which
        index.

        An error fails its own item only. `list.extend` keeps what an iterator gave before it raised, and
        `map` goes on with the next item after an error, so the calls run at the speed of C all the same.
        """
        calls = starmap(function, items) if flags & STAR else map(function, items)
        total = len(results) + len(items)
        while len(results) < total:
            try:
                results.extend(calls)
                if self._host.forked:
                    end_fork(None)
                if len(results) < total:
                    # Only a StopIteration that the function itself raised ends `calls` early.
                    raise RuntimeError("the function raised StopIteration")
            except BaseException as error:
                if self._host.stopping or self._host.forked:
                    # The whole chunk. A KeyboardInterrupt of the item's own is an error like any other.
                    raise
                errors.append((len(results), failure.pack_exception(error, pickler)))
                results.append(None)

    def _outcomes(
        self, base: int, results: list[Any], errors: list[tuple[int, bytes]], pickler: Pickler
    ) -> Iterator[tuple[int, int, bytes]]:
        """The results of the items from `base` on, to be handed in: up to which item, kind and data.

        All in one; if that cannot be sent, in halves, and halves of these. What cannot be sent alone is the
        error of its own item, whatever the reason: there may be shared memory for one result, and none for
        all of them. Each outcome is sent as it was pickled, as the next time it might fail.
        """
        left = [(0, len(results))]
        while left:
            start, stop = left.pop()
            # Now pickling may be the end of the worker.
            self._words[ITEM] = base + start << 32 | base + stop
            own_errors = [(index - start, packed) for index, packed in errors if start <= index < stop]
            try:
                kind, data = payload.dump_chunk(results[start:stop], own_errors, pickler)
            except BaseException as error:
                if self._host.stopping:
                    raise
                if stop - start > 1:
                    middle = (start + stop) // 2
                    left += [(middle, stop), (start, middle)]
                    continue
                kind, data = self._dump_error(results[start], own_errors, error, pickler)
            yield base + stop, kind, data

    def _dump_error(
        self, result: object, errors: list[tuple[int, bytes]], trouble: BaseException, pickler: Pickler
    ) -> tuple[int, bytes]:
        """The outcome of one item whose result, or error, cannot be sent because of `trouble`."""
        if errors:
            return _told_in_short(errors[0][1], trouble)
        try:
            if isinstance(trouble, SerializationError):
                # It tells of the list that the result is in; this tells of the result.
                try:
                    codec.dumps(result, pickler)
                except SerializationError as error:
                    raise codec.about_result(error) from error.__cause__
            packed = failure.pack_exception(trouble, pickler)
        except BaseException as again:
            if self._host.stopping:
                raise
            packed = failure.pack_exception(again, pickler)
        try:
            return payload.dump_chunk([None], [(0, packed)], pickler)
        except BaseException as again:
            if self._host.stopping:
                raise
            return _told_in_short(packed, again)

    def _hand_in(self, number: int, reached: int, kind: int, data: bytes) -> None:
        """Send the results of the items before `reached` that have not been sent yet."""
        head = RESULT_HEAD.pack(number, reached, PART if kind == VALUE else BIG_PART)
        self._host.outbox.put_part(head + data)


def _told_in_short(packed: bytes, trouble: BaseException) -> tuple[int, bytes]:
    """The outcome of one item whose error is too long to be sent: so short that it takes no shared memory."""
    kind = type(failure.unpack_exception(packed, contain=True)).__name__
    error = SerializationError(f"the outcome of this item, a {kind}, cannot be sent: {trouble!r:.2000}")
    return payload.dump_chunk([None], [(0, failure.pack_exception(error))], "pickle")


Broken = NamedTuple("Broken", [("error", Exception)])
"""Stands for an item that could not be unpickled."""


def except_of_broken(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which raises what is wrong with an item that could not be unpickled."""

    def call(*args: Any) -> Any:
        if args and type(args[0]) is Broken:
            raise args[0].error
        return function(*args)

    return call
