"""Rewinds in sessions that people wrote: the state is that of a fresh worker that ran the same prefix."""

from __future__ import annotations

import random

import pytest

from benchmarks.doctest_corpus import Docstring, passing_docstrings
from benchmarks.doctest_replay import _FILL
from repl_kernel.errors import SnapshotGone
from tests.repl_kernel.timeline_world import World

_MODULES = ("statistics", "difflib", "fractions", "more_itertools.recipes", "collections", "random", "heapq")

_STATE = r"""
def _state_(names):
    import re, types
    return sorted(
        (name, re.sub(r"0x[0-9a-f]+", "0x", repr(value)))
        for name, value in names.items()
        if not name.startswith("_") and not isinstance(value, (types.ModuleType, types.FunctionType, type))
    )
"""


def _sessions() -> list[Docstring]:
    return [
        docstring
        for module in _MODULES
        for docstring in passing_docstrings(module)[0]
        if 3 <= len(docstring.examples) <= 30
    ]


def _start(docstring: Docstring) -> World:
    world = World()
    features = "".join(f"from __future__ import {name}\n" for name in docstring.features)
    world.keep(_FILL.format(features=features, module=docstring.module) + "\n" + _STATE)
    return world


def _state(world: World, prefix: int, docstring: Docstring) -> object:
    for example in docstring.examples[:prefix]:
        world.run(example.source)
    return world.value("_state_(globals())")


@pytest.mark.parametrize("rewinds", [8, pytest.param(500, marks=pytest.mark.slow)])
def test_the_state_is_that_of_a_fresh_run_of_the_same_prefix(rewinds: int) -> None:
    dice = random.Random(5)
    before, done, thinned = -1, 0, 0
    corpus = _sessions()
    sessions: list[Docstring] = []
    while done < rewinds:
        if not sessions:  # all of them again, with other rewinds
            assert done > before, "no state of any session is kept"
            before = done
            sessions = dice.sample(corpus, len(corpus))
        docstring = sessions.pop()
        world, fresh = _start(docstring), _start(docstring)
        for example in docstring.examples:
            world.run(example.source)
            world.idle()
        for _ in range(min(rewinds - done, len(docstring.examples))):
            prefix = dice.randint(1, len(docstring.examples))
            try:
                world.executor.rewind(prefix + 1)
            except SnapshotGone:
                assert prefix + 1 not in world.kept()
                thinned += 1
                continue
            fresh.executor.rewind(1)
            assert world.value("_state_(globals())") == _state(fresh, prefix, docstring), docstring.name
            done += 1
        world.close()
        fresh.close()
    assert done >= rewinds
