"""`mpkit._platform.signals.names` and `mpkit._platform.threads.fences`."""

from __future__ import annotations

import importlib
import os
import platform
import signal
from types import SimpleNamespace

import pytest

from mpkit._platform.signals.names import signal_name
from mpkit._platform.threads import fences


def test_names_of_signals() -> None:
    assert signal_name(-signal.SIGSEGV) == "SIGSEGV"
    assert signal_name(-40) in {"signal 40", "SIGRTMIN+6"}
    assert signal_name(0) is None
    assert signal_name(1) is None
    assert signal_name(None) is None


@pytest.mark.parametrize(
    "machine, strong", [("x86_64", True), ("AMD64", True), ("aarch64", False), ("arm64", False)]
)
def test_the_fence_follows_the_processor(machine: str, strong: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        with monkeypatch.context() as patch:
            patch.setattr(platform, "machine", lambda: machine)
            if hasattr(os, "uname"):
                patch.setattr(os, "uname", lambda: SimpleNamespace(machine=machine))
            importlib.reload(fences)
            assert fences.TOTAL_STORE_ORDER is strong
            fences.full_fence()
    finally:
        importlib.reload(fences)
