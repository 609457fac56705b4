"""`python -m mpkit`: a module or package for each command (see `main`), and what they have in common."""

from __future__ import annotations
