"""Typing names that older Pythons lack, without loading `typing_extensions` at run time.

That module loads `inspect` and a dozen others, which takes some ten milliseconds in each process: in the
program, and in every worker, which imports the main module and what that imports from mpkit. At run time
these names have no effect.
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
        """`typing.TypeVar` without the default, which only type checkers need."""
        return typing.TypeVar(name, **options)

    def override(method: object) -> object:
        """`typing.override`, without marking the method."""
        return method


def without_type_arguments(attributes: dict[str, Any]) -> dict[str, Any]:
    """The attributes of an object to be pickled, without ``__orig_class__``, which ``C[T]()`` sets.

    That attribute only serves annotations, and often cannot be pickled: if T is the type parameter of a
    function or a class, or a class inside a function.
    """
    return {name: value for name, value in attributes.items() if name != "__orig_class__"}
