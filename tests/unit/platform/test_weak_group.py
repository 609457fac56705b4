from __future__ import annotations

import gc
import sys
import threading
import weakref
from types import FrameType
from typing import Any

from mpkit._platform.threads.weak_group import WeakGroup


class Thing:
    pass


def test_a_group_contains_its_members_while_they_are_referenced() -> None:
    group: WeakGroup[Thing] = WeakGroup()
    one, other, gone = Thing(), Thing(), Thing()
    group.add(one)
    group.add(other)
    group.add(gone)
    group.add(one)
    group.discard(other)
    group.discard(Thing())
    del gone
    gc.collect()
    assert group.alive() == [one]


def test_members_may_come_and_go_while_a_group_is_listed() -> None:
    group: WeakGroup[Thing] = WeakGroup()
    stays = Thing()
    passing = [Thing() for _ in range(3)]
    group.add(stays)
    group.add(passing[0])
    come = 0

    def trace(_frame: FrameType, _event: str, _value: object) -> Any:
        # Do what another thread may do between any two lines.
        nonlocal come
        if come < 6:
            come += 1
            passing.append(Thing())
            group.add(passing[-1])
            del passing[0]
        return trace

    sys.settrace(trace)
    try:
        found = group.alive()
    finally:
        sys.settrace(None)
    assert come
    assert stays in found


def test_threads_add_drop_and_list_at_the_same_time() -> None:
    group: WeakGroup[Thing] = WeakGroup()
    errors: list[BaseException] = []
    listed = threading.Event()

    def come_and_go() -> None:
        while not listed.is_set():
            some = [Thing() for _ in range(50)]
            for one in some:
                group.add(one)
            while some:
                some.pop()

    threads = [threading.Thread(target=come_and_go) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(2000):
            group.alive()
    except RuntimeError as error:
        errors.append(error)
    finally:
        listed.set()
        for thread in threads:
            thread.join()
    assert not errors
    gc.collect()
    assert group.alive() == []


def test_a_group_keeps_no_member_alive() -> None:
    group: WeakGroup[Thing] = WeakGroup()
    thing = Thing()
    group.add(thing)
    reference = weakref.ref(thing)
    del thing
    gc.collect()
    assert reference() is None
    assert not group._references
