"""What `variables` and the records say about values."""

from __future__ import annotations

import json
import sys
from collections import deque
from typing import Any

import numpy as np
import pandas as pd
import pytest

from repl_kernel.description import describe, describe_all, preview


class Hostile:
    def __getattribute__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")

    def __len__(self) -> int:
        raise AssertionError("__len__ was called")

    def __repr__(self) -> str:
        raise ValueError("no repr")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (1, {"type": "int"}),
        (None, {"type": "NoneType"}),
        ([1, 2], {"type": "list", "length": 2}),
        ({"a": 1}, {"type": "dict", "length": 1}),
        ("ab", {"type": "str", "length": 2, "bytes": sys.getsizeof("ab")}),
        (deque([1]), {"type": "collections.deque", "length": 1}),
        (np.zeros((2, 3)), {"type": "numpy.ndarray", "shape": [2, 3], "dtype": "float64", "bytes": 48}),
        (pd.DataFrame({"a": [1, 2]}), {"type": "pandas.DataFrame", "shape": [2, 1]}),
        (pd.Series([1.5]), {"type": "pandas.Series", "shape": [1], "dtype": "float64"}),
    ],
)
def test_a_value_is_described_by_type_and_size(value: object, expected: dict[str, object]) -> None:
    assert describe(value) == expected
    assert json.loads(json.dumps(describe(value))) == expected


def test_a_class_of_the_session_has_its_bare_name() -> None:
    namespace: dict[str, Any] = {"__name__": "__main__"}
    exec("class Thing: pass\nthing = Thing()", namespace)
    assert describe(namespace["thing"]) == {"type": "Thing"}


def test_nothing_of_the_users_runs_to_describe_a_value() -> None:
    described = describe(Hostile())
    assert set(described) == {"type"}
    assert str(described["type"]).endswith("Hostile")


def test_an_exception_in_repr_is_contained_and_named() -> None:
    assert preview(Hostile()).endswith("repr raised ValueError>")
    assert "repr raised" in preview([Hostile()], 200)


@pytest.mark.parametrize(
    "make", ["'x' * 10**6", "list(range(10**6))", "{i: [i] for i in range(10**4)}", "10**5000"]
)
def test_a_preview_is_short(make: str) -> None:
    value = eval(make)
    assert 0 < len(preview(value, 40)) <= 40


def test_a_list_that_contains_itself_has_a_preview() -> None:
    loop: list[object] = [1]
    loop.append(loop)
    assert preview(loop) == "[1, [1, [1, […]]]]"


def test_previews_of_small_builtins_are_their_repr() -> None:
    for value in ([], (), {}, set(), (1,), [1, "a"], {"k": (1, 2)}, {3}, frozenset({4}), b"x", 1.5, None):
        assert preview(value) == repr(value)


def test_hidden_and_private_names_are_no_variables() -> None:
    namespace: dict[str, object] = {"b": [1], "_p": 1, "shown": 1, "put": 1}
    assert describe_all(namespace, {"put"}) == [
        {"name": "b", "type": "list", "length": 1, "preview": "[1]"},
        {"name": "shown", "type": "int", "preview": "1"},
    ]
