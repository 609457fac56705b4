"""How a worker runs a chunk: many calls of one function, sent as one task."""

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

#: The short items of a chunk are processed in blocks that take about this long, ...
_BLOCK_NS = 500_000
#: ... and finished results are handed in this often.
_PART_NS = 2_000_000


class Host(Protocol):
    """What a `ChunkRunner` uses of its worker."""

    outbox: Outbox
    #: The parent has interrupted the task: an exception in it is no error of the task from now on.
    stopping: bool
    #: This process is a fork of the worker.
    forked: bool


class ChunkRunner:
    """Calls a function for each item of a chunk. An error fails only its own item."""

    def __init__(self, host: Host, channel: Channel, bells: Bells) -> None:
        self._host = host
        self._words = channel.words
        self._bells = bells
        # The items that are being processed in one call of C code.
        self._block: list[Any] = []

    def drop_block(self) -> None:
        """In a fork of the worker: if the call returns there, the C code must not go on to the next item."""
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

        Meanwhile, the word `ITEM` says which items are being processed, and finished results are handed in
        every `_PART_NS`: so the death of the worker costs as little as possible. Short items are processed in
        blocks of about `_BLOCK_NS`, because a store for each of them would cost more than the item itself.

        Returns:
            Kind and data of the outcome of the last items, which have not been handed in: see
            `payload.dump_chunk`.
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
            # Always a list (the items may be a range), so that `drop_block` can empty it.
            self._block = list(items[at:end])
            self._run_block(function, self._block, flags, pickler, results, errors)
            at = end
            if at < stop:
                now = clock()
                took, began = now - began, now
                # The next items may take longer, so the block grows fourfold at most.
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

        The outcome of each item is in the outbox before the next item begins. So if the worker dies, only the
        item that it is processing is affected, and none runs twice.

        Returns:
            Kind and data of the outcome of the last item, which has not been handed in.
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
                    # This ends the whole group, and not only the item.
                    raise
                errors.append((0, failure.pack_exception(error, pickler)))
            if self._host.forked:
                end_fork(None)
            # Free the item: it must not live on while the next one is processed.
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
        """Call the function for each item: adds results to `results`, and (index, pickled error) to `errors`.

        `list.extend` keeps what an iterator has returned before it raised an exception, and `map` goes on
        with the next item after that. So an error fails only its own item, and yet the
        calls run at the speed of C.
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
                    # This ends the whole chunk. (A KeyboardInterrupt raised by the item itself is an error
                    # like any other, and does not come here.)
                    raise
                errors.append((len(results), failure.pack_exception(error, pickler)))
                results.append(None)

    def _outcomes(
        self, base: int, results: list[Any], errors: list[tuple[int, bytes]], pickler: Pickler
    ) -> Iterator[tuple[int, int, bytes]]:
        """Pickle the results of the items from `base` on.

        They are pickled together. If that fails, they are divided into halves, down to single items: a result
        that cannot be pickled or sent by itself becomes the error of its own item. (There may be shared
        memory for each of the results, but not for all of them together.)

        Yields:
            The index behind the last item, kind and data. To be handed in as they are, because pickling the
            same results again might fail.
        """
        left = [(0, len(results))]
        while left:
            start, stop = left.pop()
            # The worker may also die while it pickles these.
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
        """The outcome of one item whose result or error cannot be sent because of `trouble`."""
        if errors:
            return _short_error(errors[0][1], trouble)
        try:
            if isinstance(trouble, SerializationError):
                # This error is about a list with the result in it. Raise one about the result itself.
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
            return _short_error(packed, again)

    def _hand_in(self, number: int, reached: int, kind: int, data: bytes) -> None:
        """Put results into the outbox: those of the items before `reached` that are not there yet."""
        head = RESULT_HEAD.pack(number, reached, PART if kind == VALUE else BIG_PART)
        self._host.outbox.put_part(head + data)


def _short_error(packed: bytes, trouble: BaseException) -> tuple[int, bytes]:
    """The outcome of one item whose error cannot be sent: an error so short that it needs no parcel."""
    kind = type(failure.unpack_exception(packed, contain=True)).__name__
    error = SerializationError(f"the outcome of this item, a {kind}, cannot be sent: {trouble!r:.2000}")
    return payload.dump_chunk([None], [(0, failure.pack_exception(error))], "pickle")


Broken = NamedTuple("Broken", [("error", Exception)])
"""Stands for an item that could not be unpickled."""


def except_of_broken(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function: for an item that could not be unpickled, it raises the reason and is not called."""

    def call(*args: Any) -> Any:
        if args and type(args[0]) is Broken:
            raise args[0].error
        return function(*args)

    return call
