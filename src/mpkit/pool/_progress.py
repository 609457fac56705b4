"""Progress bars, which are no reason for anything else to fail."""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
from typing import Any

from mpkit._platform.interrupts import deferred_interrupts

__all__ = ["Progress"]

_logger = logging.getLogger("mpkit.pool")


class Progress:
    """A progress bar that counts items (tqdm), or nothing.

    A bar that fails (the terminal is gone, say) is dropped: it is told within the settling of outcomes, where
    an error would keep whoever waits for them waiting.
    """

    def __init__(self, wanted: bool, total: int | None, what: str) -> None:
        self._bar: Any = None
        self._lock = threading.Lock()
        if wanted:
            try:
                bar_class = _bar_class()
            except ImportError as error:
                raise ImportError("progress=True needs the package tqdm: install mpkit[progress]") from error
            try:
                # Interrupted in the middle, it would keep the lock of all bars.
                with deferred_interrupts():
                    self._bar = bar_class(total=total, desc=what)
            except Exception as error:  # noqa: BLE001  whatever it is, the work is done without a bar
                _bar_failed(error)

    @property
    def is_shown(self) -> bool:
        """Whether there is a bar."""
        return self._bar is not None

    def step(self, items: int) -> None:
        """So many more are done."""
        if self._bar is not None:
            with deferred_interrupts(), self._lock:
                if self._bar is not None:
                    try:
                        self._bar.update(items)
                    except Exception as error:  # noqa: BLE001  see above
                        self._bar = None
                        _bar_failed(error)

    def close(self) -> None:
        """No more will come."""
        if self._bar is not None:
            with deferred_interrupts(), self._lock:
                bar, self._bar = self._bar, None
                if bar is not None:
                    try:
                        bar.close()
                    except Exception as error:  # noqa: BLE001  see above
                        _bar_failed(error)


@functools.cache
def _bar_class() -> type[Any]:
    """The bar of tqdm that fits where it is to be shown, made safe.

    Raises:
        ImportError: tqdm is not installed.
    """
    from tqdm.auto import tqdm  # noqa: PLC0415  an extra

    bar: Any = tqdm

    class Bar(bar):  # type: ignore[misc]  # its kind is known when it is asked for
        """tqdm shows a bar while it holds the lock of all bars, and does not give that back after an error:
        the next bar, of whatever thread, would wait for ever.
        """

        def display(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return bar.display(self, *args, **kwargs)
            except Exception as error:  # noqa: BLE001  see above
                self.disable = True
                _bar_failed(error)

    return Bar


def _bar_failed(error: Exception) -> None:
    # A handler may write to the very terminal that is gone.
    with contextlib.suppress(Exception):
        _logger.warning("the progress bar cannot be shown, and is dropped: %r", error)
