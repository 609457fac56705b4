"""The tasks of the pool's tests. In a module of their own: spawned workers have to import them by name."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpkit import BoundedQueue, LockedCounter


def square(x: int) -> int:
    return x * x


def add(a: int, b: int = 0) -> int:
    return a + b


def echo(value: Any) -> Any:
    return value


def make_adder(offset: int) -> Callable[[int], int]:
    return lambda number: number + offset


def nothing(*_: object) -> None:
    return None


_kept: deque[object] = deque(maxlen=3)


def make_a_queue() -> None:
    """Create a queue that exists until this process ends."""
    _kept.append(BoundedQueue[int]())


def pid_of_worker(*_: object) -> int:
    return os.getpid()


def pid_of_worker_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def fail(value: object) -> None:
    raise ValueError(value)


def fail_if_odd(number: int) -> int:
    if number % 2:
        raise ValueError(number)
    return number


def stop_iteration(number: int) -> int:
    if number == 1:
        raise StopIteration
    return number


def kill_myself(signum: int = signal.SIGKILL) -> None:
    os.kill(os.getpid(), signum)
    time.sleep(60)


def wait_and_die(gate: LockedCounter) -> None:
    gate.wait_for(1)
    kill_myself()


def exit_now(code: int) -> None:
    os._exit(code)


def leave(code: int) -> None:
    sys.exit(code)


def raise_base() -> None:
    raise BaseException("from below")


def segfault() -> None:
    ctypes.string_at(0)


def wait_for_file(path: str) -> str:
    while not Path(path).exists():
        time.sleep(0.005)
    return path


def touch_and_wait(path: str, seconds: float = 60.0) -> None:
    Path(path).touch()
    time.sleep(seconds)


def value_of_module(name: str) -> object:
    return importlib.import_module(name).VALUE


def touch(path: str) -> None:
    Path(path).touch()


def count_and_die(path: str) -> None:
    with open(path, "a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)


def die_once(path: str, value: Any) -> Any:
    if not Path(path).exists():
        Path(path).touch()
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return value


def busy_in_c() -> None:
    """Run in C for ever, holding the interpreter lock."""
    sum(itertools.repeat(0))


def hold_out(begun: str = "") -> None:
    """Ignore Ctrl-C and SIGTERM, so that only SIGKILL ends this process."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if begun:
        Path(begun).touch()
    while True:
        try:
            signal.pause()
        except KeyboardInterrupt:
            continue


def ignore_interrupts(path: str) -> None:
    Path(path).touch()
    while True:
        try:
            time.sleep(60)
        except KeyboardInterrupt:
            continue


def catch_interrupt(path: str) -> str:
    Path(path).touch()
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        return "caught"
    return "not interrupted"


def use_memory(n_bytes: int) -> None:
    block = bytearray(n_bytes)
    for at in range(0, n_bytes, 4096):
        block[at] = 1
    time.sleep(60)


class Unpicklable:
    def __reduce__(self) -> Any:
        raise TypeError("not this one")


class UnpicklableError(Exception):
    def __reduce__(self) -> Any:
        raise TypeError("not this error")


class InterruptsWhilePickledError(Exception):
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt("nobody has pressed it")


class NeedsTwo(Exception):
    """Ordinary unpickling fails: it calls the constructor with `args`, which has one item instead of two."""

    def __init__(self, one: int, two: int) -> None:
        super().__init__(one + two)


class Breaks:
    """Can be pickled, but not unpickled."""

    def __reduce__(self) -> Any:
        return _break, ()


def _break() -> None:
    raise RuntimeError("cannot come back")


def return_unpicklable() -> Any:
    return Unpicklable()


def unpicklable_if_odd(number: int) -> Any:
    return Unpicklable() if number % 2 else number


def return_what_breaks() -> Any:
    return Breaks()


def raise_unpicklable() -> None:
    raise UnpicklableError("lost")


def raise_what_interrupts() -> None:
    raise InterruptsWhilePickledError("lost")


def raise_a_long_one() -> None:
    raise ValueError("x" * 100_000)


def raise_needs_two() -> None:
    raise NeedsTwo(1, 2)


STATE: list[object] = []


def initialize(*args: object) -> None:
    STATE.extend(args)


def state() -> list[object]:
    return STATE


def initialize_badly(gate: str) -> None:
    wait_for_file(gate)
    raise LookupError("no licence")


def exit_in_initializer(code: int) -> None:
    os._exit(code)


def hang_unless_zero(name: str) -> str:
    if name != "0":
        time.sleep(600)
    return name


def hang() -> None:
    time.sleep(600)


def log(name: str, text: str) -> None:
    logging.getLogger(name).warning(text, extra={"colour": "blue"})


def total(array: Any) -> float:
    return float(array.sum())


def total_in(containers: Any) -> float:
    return sum(float(part.sum()) for part in containers["arrays"])


def try_to_write(array: Any) -> str:
    try:
        array[0] = 1
    except ValueError as error:
        return str(error)
    return "written"


def make_array(n: int) -> Any:
    import numpy as np

    return np.arange(n, dtype=np.float64)


def nested(number: int) -> list[int]:
    from mpkit.pool import TaskPool

    with TaskPool(processes=1, context="fork") as pool:
        return pool.map(square, range(number))


def leave_a_nested_pool_open() -> int:
    from mpkit.pool import TaskPool

    pool = TaskPool(processes=1, context="fork")
    STATE.append(pool)
    return pool.submit(os.getpid).result()


class Slow:
    """Takes a moment to unpickle."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __setstate__(self, state: dict[str, Any]) -> None:
        time.sleep(state["seconds"])
        self.__dict__.update(state)


def return_slow(seconds: float) -> Slow:
    return Slow(seconds)


def square_or_die(number: int, victim: int) -> int:
    if number == victim:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return number * number


def note_and_die(number: int, victim: int, path: str) -> int:
    """Append the number to a file, slowly enough for a worker to report each item by itself."""
    with open(path, "a") as file:
        file.write(f"{number}\n")
    time.sleep(0.002)
    return square_or_die(number, victim)


def square_or_die_once(number: int, victim: int, path: str) -> int:
    return die_once(path, number * number) if number == victim else number * number


class DiesWhenUnpickled:
    def __reduce__(self) -> Any:
        return os._exit, (9,)


def note(number: int, path: str) -> int:
    with open(path, "a") as file:
        file.write(f"{number}\n")
    return number


def hang_in_initializer(path: str) -> None:
    Path(path).touch()
    time.sleep(600)


def initialize_slowly(begun: str, gate: str, ended: str) -> None:
    Path(begun).touch()
    wait_for_file(gate)
    Path(ended).touch()


def leave_in_initializer(text: str) -> None:
    sys.exit(text)


def raise_much_in_initializer() -> None:
    raise LookupError("x" * 100_000)


def wait_in_initializer(path: str) -> None:
    """Hang in the first process that gets here; return at once in all others."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    time.sleep(600)


def overflow_the_stack() -> None:
    """Call from C to Python to C, on a stack that is smaller than Python believes."""
    import resource

    resource.setrlimit(resource.RLIMIT_STACK, (1 << 17, resource.getrlimit(resource.RLIMIT_STACK)[1]))
    sys.setrecursionlimit(1 << 30)

    def again(number: int) -> int:
        return min([number], key=again)

    again(0)


class HangsWhenPickled(Exception):
    def __reduce__(self) -> Any:
        time.sleep(600)
        return HangsWhenPickled, ()


class HangsWhenUnpickled(Exception):
    def __reduce__(self) -> Any:
        return _hang, ()


def _hang() -> None:
    time.sleep(600)


def raise_hanging(kind: type[Exception]) -> None:
    raise kind


def return_hanging(kind: type[Exception]) -> Exception:
    return kind()


class WaitsWhenUnpickled:
    """When unpickled, touches the file `begun`, waits for the file `gate`, and becomes the name of `gate`."""

    def __init__(self, begun: str, gate: str) -> None:
        self.paths = (begun, gate)

    def __reduce__(self) -> Any:
        return _touch_and_wait_for, self.paths


def _touch_and_wait_for(begun: str, gate: str) -> str:
    touch(begun)
    return wait_for_file(gate)


class TouchesWhenUnpickled:
    """When unpickled, touches the file and becomes its name."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return touch_and_return, (self.path,)


def touch_in_the_parent_or_wait(path: str, number: int) -> tuple[object, bytes]:
    """The first result is big, and touches the file when it is unpickled. The others wait for the file."""
    return (wait_for_file(path), b"") if number else (TouchesWhenUnpickled(path), bytes(1 << 15))


class LeavesWhenUnpickled:
    def __reduce__(self) -> Any:
        return sys.exit, (7,)


class ErrorThatLeavesInItsParent(Exception):
    """Exits when it is unpickled in the process `pid`, the parent; in a worker it can be unpickled."""

    def __init__(self, pid: int) -> None:
        super().__init__(pid)
        if os.getpid() == pid:
            sys.exit(7)


def raise_what_leaves_in_its_parent(pid: int) -> None:
    raise ErrorThatLeavesInItsParent(pid)


class InterruptsWhenUnpickled:
    def __reduce__(self) -> Any:
        return signal.raise_signal, (signal.SIGINT,)


def touch_and_return(path: str) -> str:
    Path(path).touch()
    return path


def note_and_die_at(item: tuple[str, int, int]) -> int:
    """Append the number to a file, and die if it is the fatal number."""
    log, number, fatal = item
    fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(fd, b"%d\n" % number)
    finally:
        os.close(fd)
    if number == fatal:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)
    return number


def appended(numbers: list[int]) -> int:
    numbers.append(1)
    return len(numbers)


_SAME: list[int] = []


def same_list(_number: int) -> list[int]:
    return _SAME


def interrupt_itself_if_odd(number: int) -> int:
    if number % 2:
        raise KeyboardInterrupt(number)
    return number


class InterruptsWhenPickled:
    def __reduce__(self) -> Any:
        raise KeyboardInterrupt


def interrupts_when_pickled_if_odd(number: int) -> Any:
    return InterruptsWhenPickled() if number % 2 else number


def touch_and_fail_when_interrupted(path: str) -> None:
    """Turn a KeyboardInterrupt into a ValueError."""
    try:
        touch_and_wait(path)
    except KeyboardInterrupt:
        raise ValueError(path) from None


def big_or_fail_if_odd(number: int) -> bytes:
    return bytes(100_000 + fail_if_odd(number))


class Counted:
    """Counts how often instances are unpickled in this process."""

    times = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        Counted.times += 1
        self.__dict__.update(state)


class FailsToUnpickleOnce:
    """Raises MemoryError the first time that an instance is unpickled in this process."""

    times = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        FailsToUnpickleOnce.times += 1
        if FailsToUnpickleOnce.times == 1:
            raise MemoryError
        self.__dict__.update(state)


def fails_to_unpickle_once(number: int) -> FailsToUnpickleOnce:
    return FailsToUnpickleOnce(number)


def big_after_a_while(number: int) -> bytes:
    """A big result, after long enough for the worker to send part of its chunk before the end."""
    time.sleep(0.003)
    return bytes([number]) * 100_000


def counted_or_fail_if_odd(number: int) -> Counted:
    return Counted(fail_if_odd(number))


def breaks_or_fails(number: int, size: int) -> Any:
    """Return a result, but for 3 and 7 one that cannot be unpickled, and for 5 raise."""
    if number in (3, 7):
        return (number, Breaks())
    if number == 5:
        raise ValueError(number)
    return (number, bytes(size))


def second(_first: Any, second: Any) -> Any:
    return second


def fail_after(gate: str, number: int) -> None:
    wait_for_file(gate)
    raise ValueError(number)


def count_down(item: tuple[Any, int]) -> int:
    """Put the next smaller number into the queue."""
    queue, number = item
    if number:
        queue.put(number - 1)
    return int(number)


def die_until(counter: LockedCounter, number: int) -> int:
    """Count this call, and die unless it is at least call number `number`."""
    reached = counter.add()
    if reached < number:
        os.kill(os.getpid(), signal.SIGKILL)
    return reached
