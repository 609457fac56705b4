"""Typing names that older Pythons lack, for modules that every worker imports.

`typing_extensions` loads `inspect` and with it a dozen modules, some ten milliseconds in each process; at run
time these names are only decoration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = ["Self", "override"]

if TYPE_CHECKING:
    from typing_extensions import Self, override
else:
    Self = object

    def override(method: object) -> object:
        """What `typing.override` does, without its mark."""
        return method
