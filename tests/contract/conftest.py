"""Other processes for all tests of a module, under each start method."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.conftest import START_METHODS
from tests.contract.queue_targets import Peer, peer_of


@pytest.fixture(scope="module", params=START_METHODS)
def method(request: pytest.FixtureRequest) -> str:
    """Each start method, so that all tests of one share their peers."""
    found: str = request.param
    return found


@pytest.fixture(scope="module")
def peer(method: str) -> Iterator[Peer]:
    """A process that does what it is told."""
    with peer_of(method) as peer:
        yield peer


@pytest.fixture(scope="module")
def other(method: str, peer: Peer) -> Iterator[Peer]:
    """Another one."""
    with peer_of(method) as other:
        yield other
