"""`python -m mpkit`: one module for each command, found in `main`."""

from __future__ import annotations
