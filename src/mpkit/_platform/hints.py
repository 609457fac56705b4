"""Typing names that older Pythons lack, without loading `typing_extensions` at run time.

That loads `inspect` and with it a dozen modules, some ten milliseconds in each process: in the program, and
in every worker, which imports the main module and with it whatever that takes from mpkit. At run time these
names are only decoration.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["Self", "TypeVar", "override", "without_type_arguments"]

if TYPE_CHECKING:
    from typing_extensions import Self, TypeVar, override
else:
    import typing

    Self = object

    def TypeVar(name: str, *, default: object = None, **options: object) -> object:  # noqa: ARG001, N802
        """What `typing.TypeVar` makes, without the default, which only type checkers ask for."""
        return typing.TypeVar(name, **options)

    def override(method: object) -> object:
        """What `typing.override` does, without its mark."""
        return method


def without_type_arguments(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an object, for its pickle, without the one that ``C[T]()`` leaves in it.

    It is for annotations only, and often cannot be pickled: where T is the type parameter of a function or a
    class, say, or a class inside a function.
    """
    return {name: value for name, value in attributes.items() if name != "__orig_class__"}
