"""What type checkers see of `WorkerProcess`. Never run."""

from __future__ import annotations

from multiprocessing.process import BaseProcess

from typing_extensions import assert_type

from mpkit import ProcessState, WorkerProcess
from mpkit.introspect import ProcessSnapshot


def scale(text: str, times: int = 1) -> list[str]:
    return [text] * times


def made_by_call() -> None:
    process = WorkerProcess.call(scale, "x", times=2)
    assert_type(process, WorkerProcess[list[str]])
    assert_type(process.result(), list[str])
    WorkerProcess.call(scale, 5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    WorkerProcess.call(scale, "x", number=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def made_by_the_constructor() -> None:
    assert_type(WorkerProcess(target=scale, args=("x",)), WorkerProcess[list[str]])
    assert_type(WorkerProcess(), WorkerProcess[None])
    with WorkerProcess(target=scale, args=("x",)) as process:
        assert_type(process.result(timeout=1), list[str])
        assert_type(process.exception(), "BaseException | None")
        assert_type(process.stop(), int)
        assert_type(process.exitcode, "int | None")
        assert_type(process.state, ProcessState)
        assert_type(process.info(), ProcessSnapshot)
        assert_type(process.children(), list[ProcessSnapshot])


class Doubler(WorkerProcess[int]):
    """A subclass that says what its `run` returns."""

    def __init__(self, number: int) -> None:
        super().__init__(daemon=True)
        self.number = number

    def run(self) -> int:  # type: ignore[override]  # the one of multiprocessing returns None
        return 2 * self.number


def subclass() -> None:
    assert_type(Doubler(3).result(), int)


def relatives(process: WorkerProcess[bool]) -> None:
    base: BaseProcess = process
    wider: WorkerProcess[int] = process
    del base, wider
