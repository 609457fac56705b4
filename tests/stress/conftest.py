"""Options for how long to run, and with which seed.

For example: ``pytest tests/stress --stress-seconds 60 --stress-seed 7``.
"""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("stress")
    group.addoption(
        "--stress-seconds",
        type=float,
        default=10.0,
        help="how long each chaos test runs",
    )
    group.addoption(
        "--stress-seed",
        type=int,
        default=None,
        help="seed of the random numbers (default: a new one, which is printed)",
    )


@pytest.fixture
def stress_seconds(request: pytest.FixtureRequest) -> float:
    seconds: float = request.config.getoption("--stress-seconds")
    return seconds


@pytest.fixture
def stress_seed(request: pytest.FixtureRequest) -> int:
    seed: int | None = request.config.getoption("--stress-seed")
    return random.randrange(1 << 32) if seed is None else seed
