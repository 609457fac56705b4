"""Trees of processes as values, however many generations they have."""

from __future__ import annotations

import copy
import pickle
import sys
from dataclasses import replace

from mpkit import introspect
from mpkit.introspect import ProcessSnapshot, ProcessTree, _tree

ME = introspect.snapshot()
# Each process was started by the one before.
GENERATIONS = 3 * sys.getrecursionlimit()


def picture(pid: int) -> ProcessSnapshot:
    return replace(ME, pid=pid, ppid=pid - 1, cmdline=(), create_time=float(pid))


def chain(last: int = GENERATIONS) -> ProcessTree:
    """A chain of processes, built in the same way as by `tree`."""
    return _tree._assemble(picture(1), {pid - 1: [picture(pid)] for pid in range(2, last + 1)})


def test_thousands_of_generations_make_a_tree() -> None:
    assert [process.pid for process in chain().walk()] == list(range(1, GENERATIONS + 1))


def test_a_tree_of_thousands_of_generations_is_a_value() -> None:
    tree, same = chain(), chain()
    assert tree == same
    assert hash(tree) == hash(same)
    assert tree != chain(GENERATIONS - 1)
    assert pickle.loads(pickle.dumps(tree)) == tree
    assert copy.deepcopy(tree) == tree
    assert repr(tree).count("ProcessTree(process=") == GENERATIONS


def family() -> ProcessTree:
    """A process with two children, the first of which has a child."""
    return ProcessTree(
        picture(1), (ProcessTree(picture(2), (ProcessTree(picture(3)),)), ProcessTree(picture(4)))
    )


def test_children_are_in_the_order_of_their_birth() -> None:
    children = {1: [picture(4), picture(2)], 2: [picture(3)]}
    assert _tree._assemble(picture(1), children) == family()
    assert [process.pid for process in family().walk()] == [1, 2, 3, 4]


def test_where_a_process_stands_counts() -> None:
    one, two, three = picture(1), picture(2), picture(3)
    below = ProcessTree(one, (ProcessTree(two, (ProcessTree(three),)),))
    beside = ProcessTree(one, (ProcessTree(two), ProcessTree(three)))
    assert list(below.walk()) == list(beside.walk())
    assert below != beside
    assert below != one
    assert len({below, beside, family(), family()}) == 3


def test_the_repr_of_a_tree_is_an_expression_that_makes_it() -> None:
    shown = repr(family())
    for pid in range(1, 5):
        shown = shown.replace(repr(picture(pid)), f"p{pid}")
    assert shown == (
        "ProcessTree(process=p1, children=("
        "ProcessTree(process=p2, children=(ProcessTree(process=p3, children=()),)), "
        "ProcessTree(process=p4, children=())))"
    )


def test_a_tree_travels() -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(family(), protocol)) == family()
    assert isinstance(pickle.loads(pickle.dumps(family())).children, tuple)


def test_two_processes_that_seem_to_be_parents_of_each_other_make_no_circle() -> None:
    circle = {1: [picture(2)], 2: [picture(1)]}
    assert [process.pid for process in _tree._assemble(picture(1), circle).walk()] == [1, 2, 1]
