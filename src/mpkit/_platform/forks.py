"""What is to be done at forks; nothing where there are none (Windows)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TypeVar

__all__ = ["around_forks", "in_forked_children"]

F = TypeVar("F", bound=Callable[[], object])


def in_forked_children(function: F) -> F:
    """Decorator: the function is called in each child of a fork, in the order of registration."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=function)
    return function


def around_forks(
    before: Callable[[], object], in_parent: Callable[[], object], in_child: Callable[[], object]
) -> None:
    """Have them called before each fork, after it in the parent (also if it has failed), and in the child."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=before, after_in_parent=in_parent, after_in_child=in_child)
