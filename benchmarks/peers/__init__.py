"""One adapter for each package that is compared. A package that is not installed is left out."""

from __future__ import annotations

import importlib.metadata
from typing import Final

from benchmarks.peers import (
    bare,
    billiard,
    dejaq,
    faster_fifo,
    joblib,
    loky,
    mpire,
    own,
    pebble,
    py_sharedmemory,
    stdlib,
    zooparallel,
)
from benchmarks.peers.base import CounterPeer, LockPeer, PoolPeer, QueuePeer

_MODULES: Final = (
    own,
    stdlib,
    faster_fifo,
    dejaq,
    py_sharedmemory,
    zooparallel,
    loky,
    joblib,
    pebble,
    mpire,
    billiard,
    bare,
)

QUEUES: Final[dict[str, QueuePeer]] = {
    peer.name: peer for module in _MODULES for peer in getattr(module, "QUEUES", ())
}
COUNTERS: Final[dict[str, CounterPeer]] = {
    peer.name: peer for module in _MODULES for peer in getattr(module, "COUNTERS", ())
}
LOCKS: Final[dict[str, LockPeer]] = {
    peer.name: peer for module in _MODULES for peer in getattr(module, "LOCKS", ())
}
POOLS: Final[dict[str, PoolPeer]] = {
    peer.name: peer for module in _MODULES for peer in getattr(module, "POOLS", ())
}

#: The distribution that contains each contender; None for the standard library.
DISTRIBUTIONS: Final[dict[str, str | None]] = {
    peer.name: module.DISTRIBUTION
    for module in _MODULES
    for kind in ("QUEUES", "COUNTERS", "LOCKS", "POOLS")
    for peer in getattr(module, kind, ())
}


def version_of(contender: str) -> str | None:
    """The version of a contender's package; ``"stdlib"`` for the standard library, None if not installed."""
    distribution = DISTRIBUTIONS.get(contender.removesuffix(" share"))
    return "stdlib" if distribution is None else version(distribution)


def version(distribution: str) -> str | None:
    """The installed version of `distribution`; None if it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
