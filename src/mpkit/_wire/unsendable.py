"""What belongs to its process: it says so when it is pickled, and a copy of it is the thing itself."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from mpkit._platform.hints import Self
from mpkit._wire.codec import UnsendableError

__all__ = ["Unsendable"]


class Unsendable:
    """Cannot be pickled."""

    #: What to do instead, as the end of a sentence.
    _instead: ClassVar[str]

    def __copy__(self) -> Self:
        # Else `copy` would ask `__reduce__`. A copy would be nobody's: not told of an end, or telling of one.
        return self

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise UnsendableError(
            f"{article} {name} cannot be pickled: it belongs to the process that created it; {self._instead}"
        )
