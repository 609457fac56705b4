"""The base of objects that cannot leave their process."""

from __future__ import annotations

from typing import ClassVar, NoReturn

from mpkit._platform.hints import Self
from mpkit._wire.codec import UnsendableError


class Unsendable:
    """An object that cannot be pickled: trying to raises `UnsendableError`. Copying it returns itself."""

    #: What to do instead; the end of the error message.
    _instead: ClassVar[str]

    def __copy__(self) -> Self:
        # Without this, `copy.copy` would call `__reduce__`. A separate copy would make no sense: it would not
        # be told when the object it stands for ends.
        return self

    def __reduce__(self) -> NoReturn:
        name = type(self).__name__
        article = "an" if name[0] in "AEIOU" else "a"
        raise UnsendableError(
            f"{article} {name} cannot be pickled: it belongs to the process that created it; {self._instead}"
        )
