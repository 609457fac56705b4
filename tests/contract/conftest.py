"""Processes that all tests of a module share, under each start method."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import START_METHODS
from tests.contract.queue_targets import Peer, peer_of


@pytest.fixture(scope="module", params=START_METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each start method. Module-scoped, so that all tests with one start method share their peers."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def peer(method: str) -> Iterator[Peer]:
    """Another process, which runs what the test tells it to."""
    with peer_of(method) as peer:
        yield peer


@pytest.fixture(scope="module")
def other(method: str, peer: Peer) -> Iterator[Peer]:
    """A second such process."""
    with peer_of(method) as other:
        yield other
