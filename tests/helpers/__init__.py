"""Helpers for several tests. Import each from its module: ``from tests.helpers.processes import reap``."""
