"""`mpkit._wire.codec`: values come back, errors say what to do, and big buffers are not copied."""

from __future__ import annotations

import array
import datetime as dt
import enum
import functools
import gc
import multiprocessing
import pickle
import socket
import sys
import threading
import types
import weakref
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import Decimal
from multiprocessing import reduction
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mpkit._wire import codec
from mpkit._wire.codec import check_pickler, contained, decode, dumps, encode, loads
from mpkit.errors import SerializationError

atoms = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text()
    | st.binary()
    | st.decimals(allow_nan=False)
    | st.datetimes()
    | st.builds(range, st.integers(0, 9))
)
values = st.recursive(
    atoms,
    lambda inner: (
        st.lists(inner)
        | st.lists(inner).map(tuple)
        | st.dictionaries(st.text(), inner)
        | st.sets(st.integers())
        | st.builds(bytearray, st.binary())
    ),
)


@settings(max_examples=40, deadline=None)
@given(value=values, cloud=st.booleans())
def test_round_trip(value: object, cloud: bool) -> None:
    assert loads(dumps(value, "cloudpickle" if cloud else "pickle")) == value


@settings(max_examples=40, deadline=None)
@given(value=values, threshold=st.integers(0, 100))
def test_round_trip_out_of_band(value: object, threshold: int) -> None:
    head, buffers = codec.Encoder(threshold).encode(value)
    assert decode(head, buffers) == value


@settings(max_examples=40, deadline=None)
@given(value=values)
def test_the_bytes_are_those_of_pickle(value: object) -> None:
    # Except plain values, which may not be pickled at all.
    assert dumps([value]) == pickle.dumps([value], 5)


@dataclass
class Point:
    x: int
    y: int

    def shifted(self, by: int) -> Point:
        return Point(self.x + by, self.y + by)


def double(number: int) -> int:
    return 2 * number


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
@pytest.mark.parametrize(
    "value",
    [
        Point(1, 2),
        [Point(i, i) for i in range(1000)],
        Decimal("1.5"),
        dt.date(2024, 2, 29),
        OrderedDict(a=1),
        "x" * 200_000,
        "\u20ac\ud800" * 50_000,
        bytearray(200_000),
        bytes(200_000),
        array.array("d", [1.0] * 50_000),
        float("inf"),
        -(2**200),
        ValueError("x", 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_many_types(value: object, pickler: codec.Pickler) -> None:
    back = loads(dumps(value, pickler))
    assert type(back) is type(value)
    if isinstance(value, BaseException):
        assert isinstance(back, BaseException)
        assert back.args == value.args
    else:
        assert back == value


@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_functions_methods_and_partials(pickler: codec.Pickler) -> None:
    def again(value: Any) -> Any:
        return loads(dumps(value, pickler))

    assert again(double)(4) == 8
    assert again(Point(1, 2).shifted)(1) == Point(2, 3)
    assert again(functools.partial(double, 5))() == 10
    assert again([].append)  # a method of a built-in object
    assert again(list.append) == list.append
    assert again(int.__add__)(1, 2) == 3


def test_identity_and_cycles_within_one_object_are_kept() -> None:
    shared = [1]
    loop: list[object] = [shared, shared]
    loop.append(loop)
    back: Any = loads(dumps(loop))
    assert back[0] is back[1]
    assert back[2] is back


def test_one_object_does_not_refer_to_an_earlier_one() -> None:
    value = ("the same string", "the same string")
    assert loads(dumps(value)) == loads(dumps(value)) == value


class Remembered:
    """An object to which there can be weak references."""


def test_nothing_pickled_is_kept_alive() -> None:
    value = Remembered()
    seen = weakref.ref(value)
    dumps(value)
    encode(value)
    with pytest.raises(SerializationError):
        dumps([value, threading.Lock()])
    del value
    gc.collect()
    assert seen() is None


class FromWithin:
    """While it is pickled, it pickles something else with the same functions."""

    def __init__(self, value: object) -> None:
        self.value = value

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return FromWithin.from_bytes, (dumps(self.value), encode(self.value)[0])

    @staticmethod
    def from_bytes(one: bytes, two: bytes) -> FromWithin:
        assert loads(one) == decode(two)
        return FromWithin(loads(one))


def test_encoding_within_a_reduce() -> None:
    back: Any = loads(dumps([FromWithin(1), FromWithin([2])]))
    assert [one.value for one in back] == [1, [2]]


def test_several_threads_at_once() -> None:
    encode = codec.Encoder(800).encode

    def work(number: int) -> None:
        for i in range(300):
            value = (number, i, "x" * i)
            assert loads(dumps(value)) == value
            head, buffers = encode([value, np.full(i, number)])
            assert (len(buffers) == 1) == (8 * i >= 800)
            back: Any = decode(head, buffers)
            assert (back[1] == number).all()
        finished.append(number)

    finished: list[int] = []
    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(finished) == [0, 1, 2, 3]


# --- buffers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_big_arrays_stay_out_of_band(pickler: codec.Pickler, order: Any) -> None:
    big = np.arange(100_000, dtype="i8").reshape(400, 250).copy(order=order)
    small = np.arange(3)
    head, buffers = encode({"big": big, "small": small}, pickler)
    assert len(head) < 1000
    assert [buffer.raw().nbytes for buffer in buffers] == [800_000]
    back: Any = decode(head, buffers)
    assert np.shares_memory(back["big"], big)  # nothing was copied
    assert (back["big"] == big).all()
    assert (back["small"] == small).all()


def test_read_only_buffers_give_read_only_arrays() -> None:
    head, buffers = encode(np.zeros(100_000))
    back: Any = decode(head, [bytes(buffer) for buffer in buffers])
    assert not back.flags.writeable


def test_the_threshold_is_inclusive() -> None:
    value = np.zeros(100, dtype="u1")
    assert codec.Encoder(101).encode(value)[1] == []
    assert len(codec.Encoder(100).encode(value)[1]) == 1
    assert len(codec.Encoder(0).encode(value)[1]) == 1


def test_not_contiguous() -> None:
    value = np.arange(200_000)[::2]
    assert (loads(dumps(value)) == value).all()
    head, buffers = encode(value)
    assert (decode(head, buffers) == value).all()
    with pytest.raises(SerializationError, match="non-contiguous"):
        encode(pickle.PickleBuffer(memoryview(b"0123456789")[::2]))


def test_in_band_copies_are_made_at_once() -> None:
    value = bytearray(b"x" * 100_000)
    data = dumps(value)
    value[:] = b"y" * 100_000
    assert loads(data) == b"x" * 100_000


def test_buffers_of_an_encoded_object_are_neither_kept_nor_sent_again() -> None:
    encoder = codec.Encoder(codec.DEFAULT_THRESHOLD)
    for turn in range(3):
        array = np.full(200_000, turn)
        seen = weakref.ref(array)
        head, buffers = encoder.encode({"array": array, "name": str(turn)})
        assert len(buffers) == 1
        again = decode(head, [bytes(buffers[0].raw())])
        assert again["name"] == str(turn)
        assert (again["array"] == turn).all()
        del array, head, buffers
        assert seen() is None


def test_missing_buffers_are_an_error() -> None:
    head, _ = encode(np.zeros(100_000))
    with pytest.raises(SerializationError, match="cannot unpickle"):
        decode(head, [])


# --- what only multiprocessing can pickle -------------------------------------------------------------------


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors")
@pytest.mark.parametrize("pickler", ["pickle", "cloudpickle"])
def test_connections_and_sockets(pickler: codec.Pickler) -> None:
    ours, theirs = multiprocessing.Pipe()
    one, two = socket.socketpair()
    with ours, theirs, one, two:
        connection: Any = loads(dumps(theirs, pickler))
        with connection:
            connection.send("hello")
            assert ours.recv() == "hello"
        again: Any = loads(dumps({"socket": two}, pickler))
        with again["socket"]:
            again["socket"].send(b"hello")
            assert one.recv(10) == b"hello"
    _stop_the_resource_sharer()


def _stop_the_resource_sharer() -> None:
    """Stop the thread with which multiprocessing passes descriptors, except to a process that is starting."""
    from multiprocessing import resource_sharer

    resource_sharer.stop(timeout=60)


class Registered:
    """Can be pickled only after a reducer for it has been registered."""

    def __reduce__(self) -> str:
        raise TypeError("not without the reducer")


@pytest.mark.parametrize("register", [reduction.register, "copyreg"])
def test_a_reducer_that_is_registered_later_counts(register: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SerializationError):
        dumps(Registered())
    if register == "copyreg":
        monkeypatch.setitem(codec._copyreg_reducers, Registered, lambda _: (int, (5,)))
    else:
        monkeypatch.setitem(codec._extra_reducers, Registered, lambda _: (int, (5,)))
    assert loads(dumps(Registered())) == 5
    assert decode(*encode([Registered()])) == [5]
    monkeypatch.undo()
    with pytest.raises(SerializationError):
        dumps(Registered())


# --- errors -------------------------------------------------------------------------------------------------


class Unpicklable:
    def __reduce__(self) -> str:
        raise ZeroDivisionError("on purpose")


class SaysItIsAMethod(Unpicklable):
    """Claims to be a method, as mocks and proxies do."""

    __class__ = property(lambda _: types.MethodType)


class UnpicklesBadly:
    def __reduce__(self) -> tuple[Any, ...]:
        return double, (1, 2, 3)


def local_function() -> Callable[[], None]:
    def inner() -> None: ...

    return inner


def local_enumeration() -> object:
    # Its repr, which Python 3.14 shows in place of the name, does not tell that it is a local one.
    return enum.Enum("Local", "ONE", module=__name__, qualname="local_enumeration.<locals>.Local")


def another_function() -> None: ...


under_this_name_before = another_function


def another_function() -> None: ...  # type: ignore[no-redef]


class HoldingALock:
    def __init__(self) -> None:
        self.lock = threading.Lock()

    def method(self) -> None: ...


def deep() -> list[object]:
    value: list[object] = []
    for _ in range(100_000):
        value = [value]
    return value


@pytest.mark.parametrize(
    "value, named, remedy",
    [
        (
            Unpicklable(),
            "type tests.unit.wire.test_codec.Unpicklable: ZeroDivisionError: on purpose",
            "__reduce__",
        ),
        (threading.Lock(), "_thread.lock", "__reduce__"),
        (lambda: None, "<lambda>", "pickler='cloudpickle'"),
        (local_function(), "local_function.<locals>.inner", "pickler='cloudpickle'"),
        (local_enumeration(), "local_enumeration.<locals>.Local", "define it at the top level"),
        (multiprocessing.get_context("spawn").Lock(), "Lock", "mpkit's queue, lock or counter"),
        (deep(), "RecursionError", "nested too deeply"),
        (under_this_name_before, "pickle tests.unit.wire.test_codec.another_function: ", "sent by name"),
        (HoldingALock().method, "test_codec.HoldingALock.method: ", "a method takes its object along"),
        (
            SaysItIsAMethod(),
            "type tests.unit.wire.test_codec.SaysItIsAMethod: ZeroDivisionError",
            "__reduce__",
        ),
    ],
    ids=[
        "reduce",
        "lock",
        "lambda",
        "local",
        "local enumeration",
        "multiprocessing lock",
        "deep",
        "another name",
        "method",
        "no method",
    ],
)
@pytest.mark.parametrize("function", [dumps, encode])
def test_what_cannot_be_pickled(
    function: Callable[[object], object], value: object, named: str, remedy: str
) -> None:
    with pytest.raises(SerializationError) as caught:
        function(value)
    assert named in str(caught.value)
    assert remedy in str(caught.value)
    assert caught.value.__cause__ is not None
    assert not isinstance(caught.value.__cause__, SerializationError)


def test_cloudpickle_accepts_what_pickle_does_not() -> None:
    back: Any = loads(dumps([lambda: 5, local_function()], "cloudpickle"))
    assert back[0]() == 5


def test_an_error_from_within_stays_itself() -> None:
    with pytest.raises(SerializationError, match=r"cannot pickle an object of type _thread.lock"):
        dumps([FromWithin(threading.Lock())])


@pytest.mark.parametrize("data", [b"", b"junk", b"\x80\x05", dumps(UnpicklesBadly())])
@pytest.mark.parametrize("function", [loads, decode])
def test_what_cannot_be_unpickled(function: Callable[[bytes], object], data: bytes) -> None:
    with pytest.raises(SerializationError, match="cannot unpickle what was received") as caught:
        function(data)
    assert isinstance(caught.value.__cause__, Exception)


def test_an_error_without_a_text_leaves_no_gap_in_the_message() -> None:
    with pytest.raises(SerializationError, match="received: EOFError; check"):
        loads(dumps(Raises(EOFError)))


class Raises:
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def __reduce__(self) -> tuple[Any, ...]:
        return _raise, (self.error,)


def _raise(error: type[BaseException]) -> None:
    raise error


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
@pytest.mark.parametrize("function", [loads, decode])
def test_errors_that_a_signal_handler_may_raise_are_passed_on(
    function: Callable[[bytes], object], error: type[BaseException]
) -> None:
    with pytest.raises(error):
        function(dumps(Raises(error)))


def test_received_data_that_exits_ends_no_worker_and_no_thread() -> None:
    with pytest.raises(SerializationError, match="SystemExit"):
        contained(loads, dumps(Raises(SystemExit)))
    with pytest.raises(SerializationError, match="LookupError"):
        contained(loads, dumps(Raises(LookupError)))
    interrupts = dumps(Raises(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        contained(loads, interrupts)
    with ThreadPoolExecutor(1) as executor, pytest.raises(SerializationError, match="KeyboardInterrupt"):
        # In that thread it cannot have been Ctrl-C.
        executor.submit(contained, loads, interrupts).result()


def test_unpickling_a_name_that_does_not_exist() -> None:
    data = dumps(double).replace(b"double", b"dooble")
    with pytest.raises(SerializationError, match="importable by the same name on the other side"):
        loads(data)


def test_a_function_of_an_interactive_session_is_told_of_cloudpickle() -> None:
    data = b"\x80\x02c__main__\nnowhere_to_be_found\n."
    with pytest.raises(
        SerializationError, match=r"interactive session, .*__main__\.py.* pickler='cloudpickle'"
    ):
        loads(data)


def test_interrupts_are_not_errors_of_pickling() -> None:
    class Interrupts:
        def __reduce__(self) -> str:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        dumps(Interrupts())
    assert loads(dumps(1)) == 1


def test_picklers_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    assert check_pickler("pickle") == "pickle"
    assert check_pickler("cloudpickle") == "cloudpickle"
    with pytest.raises(ValueError, match="must be 'pickle' or 'cloudpickle'; got 'dill'"):
        check_pickler("dill")
    monkeypatch.setitem(sys.modules, "cloudpickle", None)
    with pytest.raises(ImportError, match=r"pip install 'mpkit\[cloudpickle\]'"):
        check_pickler("cloudpickle")


PLAIN = [
    0,
    -1,
    2**31,
    -(2**63),
    10**400,
    True,
    False,
    None,
    0.0,
    -0.0,
    1e308,
    float("inf"),
    "",
    "text",
    "\N{SNOWMAN} \ud800 \0",
    "long " * 5000,
    "lang \xe4" * 5000,
    b"",
    bytes(range(256)),
    bytes(20_000),
    (),
    (1, "a", 2.5, None, True, b"x", -(2**70), "\xe9"),
    tuple(range(9)),
]


@pytest.mark.parametrize("value", PLAIN, ids=lambda value: repr(value)[:20])
def test_plain_values_come_back_exactly(value: object) -> None:
    head, buffers = encode(value)
    assert not buffers
    for again in (loads(head), decode(head), loads(memoryview(head))):
        assert (type(again), repr(again)) == (type(value), repr(value))


PLAIN_PARTS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary()


class Number(int):
    """Not a plain number: it must keep its type."""


class Text(str):
    __slots__ = ()


class Pair(NamedTuple):
    first: object
    second: object


@pytest.mark.parametrize(
    "value",
    [
        Number(3),
        Text("a"),
        Pair(1, 2),
        (Number(3), 1),
        (1, (2, Text("b"))),
        bytearray(b"x"),
        (bytearray(b"x"),),
        (array.array("i", [1, 2]), 1),
        ([1], 2),
        ({1}, {2: 3}),
        (1, 2j),
        (int, str),
        (..., NotImplemented),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_values_that_only_look_plain_are_pickled(value: object) -> None:
    """`marshal` would accept some of these, and return something else."""
    head, buffers = encode(value)
    assert head[0] == 0x80
    again = decode(head, buffers)
    assert again == value
    if isinstance(value, tuple):
        assert [type(part) for part in again] == [type(part) for part in value]
    assert type(again) is type(value)


def test_a_list_twice_in_a_tuple_stays_one() -> None:
    one: list[int] = []
    first, second = loads(encode((one, one))[0])
    assert first is second


@given(st.recursive(PLAIN_PARTS, lambda inner: st.lists(inner, max_size=10).map(tuple), max_leaves=12))
def test_any_tuple_comes_back(value: object) -> None:
    again = loads(encode(value)[0])
    assert repr(again) == repr(value)
