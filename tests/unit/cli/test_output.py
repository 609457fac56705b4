"""Standard output and standard error that are missing, full, or cannot show a character."""

from __future__ import annotations

import io
import sys

import pytest

from mpkit.cli import _output


class Full(io.StringIO):
    """A stream that accepts nothing."""

    def write(self, _text: str, /) -> int:
        raise OSError(28, "No space left on device")


def test_characters_that_the_encoding_lacks_come_out_as_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in the C locale, in which bytes that are not text would otherwise reach the terminal unchanged.
    taken = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(taken, encoding="ascii", errors="surrogateescape"))
    _output.prepare()
    _output.show("caf\xe9 \udce9", flush=True)
    assert taken.getvalue().rstrip() == rb"caf\xe9 \udce9"


def test_output_that_cannot_be_written_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(
        _output.OutputError, match=r"^cannot write to standard output: No space left"
    ) as caught:
        _output.show("text")
    # Otherwise it would look like an error of the files that the command works on.
    assert not isinstance(caught.value, OSError)


def test_without_standard_output_no_work_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    _output.check()
    monkeypatch.setattr(sys, "stdout", None)
    with pytest.raises(_output.OutputError, match="it is closed"):
        _output.check()
    _output.prepare()
    _output.flush()
    _output.drop()


@pytest.mark.parametrize("nobody", [None, Full()], ids=["closed", "full"])
def test_an_error_message_that_cannot_be_written_is_no_further_error(
    nobody: Full | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stderr", nobody)
    _output.complain("a pity")
    # And it must not be written to standard output, as `print` does if its file is None.
    assert capsys.readouterr().out == ""
