"""What a check of `doctor` has found."""

from __future__ import annotations

import enum
from dataclasses import dataclass


class Level(enum.Enum):
    """How much a finding matters."""

    FINE = "ok"
    NOTE = "note"
    PROBLEM = "PROBLEM"


@dataclass(frozen=True)
class Finding:
    """The outcome of one check.

    Attributes:
        level: how much it matters.
        subject: what was checked, in a word or two.
        detail: what was found.
        remedy: what to do about it; empty if there is nothing to do.
    """

    level: Level
    subject: str
    detail: str
    remedy: str = ""


def fine(subject: str, detail: str) -> Finding:
    """A finding that says that all is well."""
    return Finding(Level.FINE, subject, detail)


def note(subject: str, detail: str, remedy: str = "") -> Finding:
    """A finding about something that works, but is worth knowing."""
    return Finding(Level.NOTE, subject, detail, remedy)


def problem(subject: str, detail: str, remedy: str) -> Finding:
    """A finding that says that something in mpkit will not work."""
    return Finding(Level.PROBLEM, subject, detail, remedy)
