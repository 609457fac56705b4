"""Typing names that older Pythons lack, without loading `typing_extensions` at run time, and one that costs.

That loads `inspect` and with it a dozen modules, some ten milliseconds in each process: in the program, and
in every worker, which imports the main module and with it whatever that takes from mpkit. At run time these
names are only decoration.

Before Python 3.14 `typing.NamedTuple` compiles the annotation of each field, and the first use of the
compiler alone takes a millisecond.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__all__ = ["NamedTuple", "Self", "TypeVar", "override", "without_type_arguments"]

if TYPE_CHECKING:
    from typing import NamedTuple

    from typing_extensions import Self, TypeVar, override
else:
    import typing
    from collections import namedtuple

    class _Fields(type):
        def __new__(cls, name: str, _bases: object, body: dict[str, Any]) -> type:
            fields = body["__annotations__"]
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(  # noqa: PYI024  what `typing.NamedTuple` makes
                name, fields, defaults=defaults, module=body["__module__"]
            )
            for attribute, value in body.items():
                setattr(made, attribute, value)
            return made

    NamedTuple = type.__new__(_Fields, "NamedTuple", (), {})
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
