"""Values in the texts of errors."""

from __future__ import annotations

from typing import Final

#: A value that takes more characters is cut.
_MOST_CHARACTERS: Final = 200


def shown(value: object) -> str:
    """The `repr` of a value that a caller has passed, for the error that refuses it.

    It is cut if it is long. If there is none (the object raises an error, is nested too deeply, or is an
    integer of too many digits), the type is named instead, so that the caller sees the error about the value.
    """
    try:
        text = repr(value)
    except Exception:  # noqa: BLE001  whatever a foreign `__repr__` raises
        return f"<unprintable {type(value).__name__} object>"
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."
