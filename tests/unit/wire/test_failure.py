"""`mpkit._wire.failure`: every exception arrives, if possible with its type, state and traceback."""

from __future__ import annotations

import builtins
import email.message
import io
import itertools
import os
import pickle
import sys
import traceback
import urllib.error
from dataclasses import dataclass
from typing import Any, NoReturn

import pytest

from mpkit import errors
from mpkit._wire import failure
from mpkit._wire.failure import RemoteTraceback, pack_exception, unpack_exception
from mpkit.errors import SerializationError


def raised(error: BaseException) -> BaseException:
    """`error` with a traceback."""
    try:
        raise error
    except BaseException as caught:
        return caught


def there_and_back(error: BaseException, pickler: Any = "pickle") -> BaseException:
    return unpack_exception(pack_exception(raised(error), pickler))


def note_of(error: BaseException) -> str:
    notes: list[str] = error.__notes__  # type: ignore[attr-defined]
    return notes[-1]


class WithState(Exception):
    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


class PicklesWell(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")
        self.first, self.second = first, second

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.first, self.second)


@dataclass(frozen=True)
class Frozen(Exception):
    number: int

    def __reduce__(self) -> tuple[Any, ...]:
        return Frozen, (self.number,)


@pytest.mark.parametrize(
    "error",
    [
        ValueError("x", 1),
        KeyError("k"),
        OSError(2, "no such file", "name"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"),
        WithState("x", 5),
        PicklesWell(1, 2),
        SystemExit(3),
        KeyboardInterrupt(),
        StopIteration(4),
        errors.WorkerCrashed(pid=1, exitcode=-9, signal="SIGKILL", stack="s"),
        errors.ProcessGone(pid=5),
    ],
    ids=lambda error: type(error).__name__,
)
def test_type_and_state_arrive(error: BaseException) -> None:
    back = there_and_back(error)
    assert type(back) is type(error)
    assert back.args == error.args
    assert str(back) == str(error)
    own = {name: value for name, value in vars(back).items() if name != "__notes__"}
    assert own == {name: value for name, value in vars(error).items() if name != "__notes__"}
    remote = back.__cause__
    assert isinstance(remote, RemoteTraceback)
    assert remote.pid == os.getpid()
    assert "in raised" in remote.text
    assert remote.text in note_of(back)
    assert remote.text in str(remote)


def test_a_frozen_dataclass() -> None:
    back = there_and_back(Frozen(5))
    assert isinstance(back, Frozen)
    assert back.number == 5
    assert "in raised" in str(back.__cause__)


def test_what_is_printed_shows_where_it_happened() -> None:
    text = "".join(traceback.format_exception(there_and_back(ValueError("x"))))
    assert "in raised" in text
    assert f"in process {os.getpid()}" in text


def test_the_frames_of_mpkit_itself_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    error = raised(ValueError("x"))
    monkeypatch.setattr(failure, "_OWN_DIRECTORY", os.path.dirname(__file__))
    assert "in raised" in unpack_exception(pack_exception(error)).__cause__.text  # type: ignore[union-attr]
    assert error.__traceback__ is not None
    error.__traceback__.tb_next = call_elsewhere().__traceback__
    assert "in raised" not in unpack_exception(pack_exception(error)).__cause__.text  # type: ignore[union-attr]


def call_elsewhere() -> BaseException:
    """An error whose traceback has a frame of the standard library, and none of this file."""
    with pytest.raises(TypeError) as caught:
        traceback.format_list([1])  # type: ignore[list-item]
    assert caught.value.__traceback__ is not None
    return caught.value.with_traceback(caught.value.__traceback__.tb_next)


def test_notes_travel() -> None:
    error = ValueError("x")
    error.__notes__ = ["mine"]  # type: ignore[attr-defined]
    back = there_and_back(error)
    assert back.__notes__[0] == "mine"  # type: ignore[attr-defined]
    assert len(back.__notes__) == 2  # type: ignore[attr-defined]


def test_causes_and_contexts_are_in_the_text() -> None:
    try:
        try:
            try:
                raise KeyError("first")
            except KeyError:
                raise ValueError("second")  # noqa: B904  that is the point
        except ValueError as error:
            raise TypeError("third") from error
    except TypeError as error:
        back = unpack_exception(pack_exception(error))
    for word in ("first", "second", "third", "direct cause", "During handling"):
        assert word in str(back.__cause__)


def test_a_cause_that_travels_with_the_error_is_kept() -> None:
    error = errors.InitializerFailed("no start")
    error.__cause__ = LookupError("the reason")
    back = there_and_back(error)
    assert isinstance(back.__cause__, RemoteTraceback)
    assert isinstance(back.__cause__.__cause__, LookupError)


def test_a_second_journey_does_not_double_the_text() -> None:
    error: BaseException = ValueError("x")
    sizes = []
    for _ in range(5):
        error = there_and_back(error)
        assert len(error.__notes__) == 1  # type: ignore[attr-defined]
        sizes.append(len(note_of(error)))
    growth = [after - before for before, after in itertools.pairwise(sizes)]
    assert max(growth) < 2 * min(growth)
    assert sizes[-1] < 10_000


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_groups() -> None:
    group: BaseException = vars(builtins)["ExceptionGroup"]("two", [ValueError("one"), TypeError("other")])
    back: Any = there_and_back(group)
    assert [type(one) for one in back.exceptions] == [ValueError, TypeError]
    assert "other" in str(back.__cause__)


# --- exceptions that cannot be sent -------------------------------------------------------------------------


class OwnReduceThatDoesNotFit(Exception):
    """The class defines how it is pickled, so nothing else is tried when that fails."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.args[0],)


class NewRaises(Exception):
    def __new__(cls, *args: object) -> NewRaises:  # noqa: PYI034
        raise LookupError("in new")

    @classmethod
    def made(cls) -> NewRaises:
        return Exception.__new__(cls)


class HoldsAnything(Exception):
    def __init__(self) -> None:
        super().__init__("holds a generator", (i for i in range(3)))


class ReduceRaises(Exception):
    def __reduce__(self) -> NoReturn:
        raise LookupError("in reduce")


class BecomesNoException(Exception):
    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("no exception",)


class StateRaises(Exception):
    def __init__(self) -> None:
        super().__init__()
        self.something = 1

    def __setstate__(self, state: object) -> NoReturn:
        raise SystemExit("in setstate")


class NoText(Exception):
    def __init__(self) -> None:
        super().__init__(lambda: None)

    def __str__(self) -> NoReturn:
        raise ZeroDivisionError

    __repr__ = __str__


def make_local() -> BaseException:
    class Local(Exception):
        pass

    return Local("local")


@pytest.mark.parametrize(
    "error, reason",
    [
        (OwnReduceThatDoesNotFit(1, 2), "missing 1 required positional argument"),
        (NewRaises.made(), "LookupError: in new"),
        (HoldsAnything(), "generator"),
        (ReduceRaises("x"), "LookupError: in reduce"),
        (BecomesNoException("x"), "it unpickles to an object of type str"),
        (StateRaises(), "SystemExit: in setstate"),
        (NoText(), "lambda"),
        (make_local(), "Local"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_serialization_error_with_the_traceback(error: BaseException, reason: str) -> None:
    back = there_and_back(error)
    assert type(back) is SerializationError
    assert type(error).__qualname__ in str(back)
    assert reason in str(back)
    assert "__reduce__" in str(back)
    assert isinstance(back.__cause__, RemoteTraceback)
    assert "in raised" in back.__cause__.text
    assert back.__cause__.text in note_of(back)
    assert type(pickle.loads(pickle.dumps(back))) is SerializationError


def test_cloudpickle_takes_local_classes() -> None:
    back = there_and_back(make_local(), "cloudpickle")
    assert type(back).__name__ == "Local"


# --- exceptions that are rebuilt without their constructor --------------------------------------------------


class TwoArguments(OSError):
    """Can be pickled, but not unpickled: `args` does not contain what its constructor needs."""

    def __init__(self, first: object, second: object) -> None:
        super().__init__(f"{first} and {second}")
        self.first, self.second = first, second


class KeywordOnly(Exception):
    __slots__ = ("response",)

    def __init__(self, message: str, *, response: object) -> None:
        super().__init__(message)
        self.response = response


class SetsNothing(TwoArguments):
    """Its `__setattr__` and `__getattr__` would fail, and so must not be used."""

    def __setattr__(self, name: str, value: object) -> None:
        if OnlyWhereItWasRaised.broken:
            raise LookupError(name)
        super().__setattr__(name, value)

    def __getattr__(self, name: str) -> NoReturn:
        raise KeyError(name) if OnlyWhereItWasRaised.broken else AttributeError(name)


def test_arguments_that_are_not_those_of_the_constructor() -> None:
    back = there_and_back(TwoArguments(1, [2]))
    assert type(back) is TwoArguments
    assert (back.first, back.second, back.args) == (1, [2], ("1 and [2]",))
    assert str(back) == "1 and [2]"
    assert "in raised" in str(back.__cause__)
    assert len(back.__notes__) == 1  # type: ignore[attr-defined]


def test_keyword_only_arguments_and_slots() -> None:
    back = there_and_back(KeywordOnly("404", response={"status": 404}))
    assert type(back) is KeywordOnly
    assert (back.args, back.response) == (("404",), {"status": 404})


def test_attributes_that_cannot_travel_are_named_in_a_note() -> None:
    error = TwoArguments(1, (number for number in range(3)))
    error.__notes__ = ["mine"]  # type: ignore[attr-defined]
    back = there_and_back(error)
    assert type(back) is TwoArguments
    assert back.first == 1
    assert not hasattr(back, "second")
    assert back.__notes__[:-1] == ["mine", "some attributes could not travel: second"]  # type: ignore[attr-defined]
    again = there_and_back(back)
    assert again.__notes__[:-1] == back.__notes__[:-1]  # type: ignore[attr-defined]


def test_attributes_that_cannot_be_unpickled_are_left_out() -> None:
    back = there_and_back(TwoArguments(StateRaises(), 2))
    assert type(back) is TwoArguments
    assert (back.second, hasattr(back, "first")) == (2, False)


def test_an_http_error_keeps_what_it_says() -> None:
    body = io.BufferedReader(io.BytesIO(b"x"))
    error = urllib.error.HTTPError("http://host/", 404, "Not Found", email.message.Message(), body)
    back = there_and_back(error)
    error.close()
    assert type(back) is urllib.error.HTTPError
    assert (back.code, back.filename, str(back)) == (404, "http://host/", "HTTP Error 404: Not Found")
    note: str = back.__notes__[0]
    assert note.startswith("some attributes could not travel: ")
    assert "fp" in note


def test_a_class_that_guards_its_attributes(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_exception(raised(SetsNothing(1, 2)))
    monkeypatch.setattr(OnlyWhereItWasRaised, "broken", True)
    back = unpack_exception(data)
    assert type(back) is SetsNothing
    assert (back.first, back.second) == (1, 2)
    assert "in raised" in str(back.__cause__)


class HidesWhatItHas(TwoArguments):
    """Nobody gets to see why it was raised, or what it says."""

    __slots__ = ("never_set",)

    @property
    def __cause__(self) -> NoReturn:  # type: ignore[override]
        raise LookupError("the cause")

    @property
    def __notes__(self) -> NoReturn:
        raise LookupError("the notes")

    def __str__(self) -> NoReturn:
        raise LookupError("the text")


def test_a_class_that_hides_what_it_has() -> None:
    back = there_and_back(HidesWhatItHas(1, 2))
    assert type(back) is HidesWhatItHas
    assert (back.first, back.second, hasattr(back, "never_set")) == (1, 2, False)
    remote = vars(BaseException)["__cause__"].__get__(back)
    # Which of them is asked for first depends on the version.
    assert remote.text.startswith(
        f"{__name__}.HidesWhatItHas (its traceback cannot be shown: LookupError: the "
    )
    assert failure.in_words(back) == "HidesWhatItHas: <no text>"


def test_ctrl_c_while_an_exception_is_pickled_is_not_swallowed() -> None:
    class Interrupted(Exception):
        def __reduce__(self) -> NoReturn:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack_exception(Interrupted())


def test_ctrl_c_while_it_is_tried_what_can_travel_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    error = TwoArguments(1, 2)

    def dumps(value: object, *_: object) -> bytes:
        if value is error:
            raise ValueError("not as it is")
        raise KeyboardInterrupt

    monkeypatch.setattr(failure, "dumps", dumps)
    with pytest.raises(KeyboardInterrupt):
        pack_exception(error)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exception groups")
def test_groups_of_exceptions_that_are_rebuilt_without_their_constructor() -> None:
    kind: Any = vars(builtins)["ExceptionGroup"]
    inner = kind("inner", [TwoArguments(1, (number for number in range(3))), ValueError("x")])
    back: Any = there_and_back(kind("outer", [KeyError("k"), inner]))
    assert type(back) is kind
    assert (back.message, repr(back.exceptions[0])) == ("outer", "KeyError('k')")
    two, other = back.exceptions[1].exceptions
    assert (type(two), two.first, type(other)) == (TwoArguments, 1, ValueError)
    assert two.__notes__ == ["some attributes could not travel: second"]


def test_a_local_class_needs_cloudpickle_here_too() -> None:
    class Local(TwoArguments):
        pass

    assert type(there_and_back(Local(1, 2))) is SerializationError
    back: Any = there_and_back(Local(1, 2), "cloudpickle")
    assert (type(back).__name__, back.first, back.second) == ("Local", 1, 2)


def test_ctrl_c_in_the_second_attempt_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(failure, "_slots", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_exception(TwoArguments(1, 2))


class OnlyWhereItWasRaised(Exception):
    broken = False

    def __init__(self, *args: object) -> None:
        if OnlyWhereItWasRaised.broken:
            raise OnlyWhereItWasRaised.broken  # type: ignore[misc]
        super().__init__(*args)


@pytest.mark.parametrize("trouble", [ValueError("not here"), SystemExit("not here")])
def test_an_exception_that_unpickles_in_the_worker_but_not_here(
    trouble: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pack_exception(raised(OnlyWhereItWasRaised("x")))
    monkeypatch.setattr(OnlyWhereItWasRaised, "broken", trouble)
    back = unpack_exception(data, contain=True)
    assert type(back) is SerializationError
    assert "not here" in str(back)
    assert "in raised" in str(back.__cause__)


def test_a_signal_handler_may_exit_while_an_exception_is_unpickled(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_exception(raised(OnlyWhereItWasRaised("x")))
    monkeypatch.setattr(OnlyWhereItWasRaised, "broken", SystemExit(7))
    with pytest.raises(SystemExit):
        unpack_exception(data)


def test_an_exception_that_becomes_something_else_here(monkeypatch: pytest.MonkeyPatch) -> None:
    data = pack_exception(raised(PicklesWell(1, 2)))
    monkeypatch.setattr(PicklesWell, "__new__", lambda cls, *args: 5)
    back = unpack_exception(data)
    assert type(back) is SerializationError
    assert "type int" in str(back)


@pytest.mark.parametrize("data", [b"", b"junk", pickle.dumps(1), pickle.dumps((1, 2)), pickle.dumps(None)])
def test_damaged_on_the_way(data: bytes) -> None:
    back = unpack_exception(data)
    assert type(back) is SerializationError
    assert "damaged" in str(back)


def test_ctrl_c_is_not_swallowed(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(failure, "dumps", interrupt)
    with pytest.raises(KeyboardInterrupt):
        pack_exception(ValueError("x"))


# --- sizes --------------------------------------------------------------------------------------------------


def test_a_huge_message_is_cut_in_the_text_and_whole_in_the_exception() -> None:
    back = there_and_back(ValueError("x" * 5_000_000))
    assert len(back.args[0]) == 5_000_000
    assert len(str(back.__cause__)) < 300_000
    assert "characters left out" in str(back.__cause__)
    assert "in raised" in str(back.__cause__)


def test_endless_recursion() -> None:
    def recur() -> NoReturn:
        recur()

    try:
        recur()
    except RecursionError as error:
        back = unpack_exception(pack_exception(error))
    assert type(back) is RecursionError
    assert len(str(back.__cause__)) < 10_000


def test_half_a_surrogate_pair() -> None:
    back = there_and_back(ValueError("\ud800"))
    assert back.args == ("\ud800",)
    assert "ud800" in str(back.__cause__)


def test_without_a_traceback() -> None:
    back = unpack_exception(pack_exception(ValueError("never raised")))
    assert type(back) is ValueError
    assert "never raised" in str(back.__cause__)


def test_a_remote_traceback_travels() -> None:
    remote = pickle.loads(pickle.dumps(RemoteTraceback("text", 5)))
    assert remote.tb == remote.text == "text"
    assert (remote.text, remote.pid) == ("text", 5)
