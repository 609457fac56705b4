from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest

from mpkit.errors import ClosedError
from mpkit.pool._shared import Shared


@pytest.mark.parametrize("line", range(4))
def test_another_thread_may_close_a_shared_object_while_its_value_is_read(line: int) -> None:
    shared = Shared("it", "pickle")
    lines = 0

    def trace(frame: FrameType, event: str, _value: object) -> Any:
        nonlocal lines
        if frame.f_code.co_name == "value" and event == "line":
            if lines == line:
                # Do what another thread may do between any two lines.
                shared.close()
            lines += 1
        return trace

    sys.settrace(trace)
    try:
        assert shared.value == "it"
    except ClosedError:
        assert shared._blob is None
    finally:
        sys.settrace(None)
    shared.close()
