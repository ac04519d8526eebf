"""Completion and inspection as functions of a namespace, a text and a cursor."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repl_kernel.completion import complete
from repl_kernel.cursor_reply import MAX_MATCHES
from repl_kernel.inspection import inspect

PIECES = [
    *"abx.,;:()[]{}'\"#\\ \n\t=1é名\U0001f600\ud800",
    "'''", '"""', "import ", "from ", "items", "items['", "text.", "(", ".upper", "f'",
]  # fmt: skip
CODE = st.lists(st.sampled_from(PIECES), max_size=20).map("".join)


class Lazy:
    """What runs code of its own where an attribute is looked up in it."""

    asked = 0
    stored = 1

    def __getattr__(self, name: str) -> Any:
        Lazy.asked += 1
        return self

    @property
    def computed(self) -> Any:
        Lazy.asked += 1
        return self


def names(namespace: dict[str, object], code: str) -> list[str]:
    found: Any = complete(namespace, code, len(code))["matches"]
    return list(found)


@given(code=CODE, place=st.integers(0))
def test_any_code_and_cursor_have_an_answer(code: str, place: int) -> None:
    namespace: dict[str, object] = {"items": {"a": 1, "b'": 2}, "text": "", "a": 1, "é": 2, 3: 4}  # type: ignore[dict-item]  # code can put anything there
    cursor = place % (len(code) + 1)
    reply: Any = complete(namespace, code, cursor)
    assert 0 <= reply["cursor_start"] <= cursor == reply["cursor_end"]
    typed = code[reply["cursor_start"] : cursor]
    assert all(match.startswith(typed) for match in reply["matches"])
    known: Any = inspect(namespace, code, cursor)
    assert known["found"] == bool(known["data"])


def test_no_property_and_no_made_up_attribute_is_asked_for() -> None:
    namespace: dict[str, object] = {"lazy": Lazy()}
    assert names(namespace, "lazy.computed.") == names(namespace, "lazy.made_up.") == []
    assert names(namespace, "lazy.sto") == ["stored"]
    assert "property" in str(inspect(namespace, "lazy.computed", 6))
    assert inspect(namespace, "lazy.made_up", 6)["found"] is False
    assert Lazy.asked == 0


def test_nothing_is_imported_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "never_loaded" / "inner").mkdir(parents=True)
    for file in ("__init__.py", "part.py", "inner/__init__.py"):
        (tmp_path / "never_loaded" / file).write_text("raise AssertionError('it was imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert names({}, "import never_l") == ["never_loaded"]
    assert names({}, "import never_loaded.p") == ["never_loaded.part"]
    assert names({}, "from never_loaded import ") == ["inner", "part"]
    assert names({}, "import never_loaded.part.") == names({}, "from nowhere.at.all import ") == []
    assert [name for name in sys.modules if name.startswith("never_loaded")] == []


def test_a_module_whose_attributes_are_made_up_is_not_asked() -> None:
    module = ModuleType("m")
    module.__dict__["__getattr__"] = lambda name: 1 / 0
    module.__dict__["there"] = 1
    assert names({"m": module}, "m.th") == ["there"]
    assert names({"m": module}, "m.not_there.") == []


def test_more_matches_than_can_be_chosen_from_are_counted() -> None:
    reply: Any = complete({f"x{number}": 0 for number in range(MAX_MATCHES + 7)}, "x", 1)
    assert (len(reply["matches"]), reply["metadata"]) == (MAX_MATCHES, {"left_out": 7})


def test_a_lot_of_code_before_the_cursor_is_looked_through() -> None:
    for code in (
        "x = 'a'\n" * 50_000,
        "(" * 250_000,
        "'\\'" * 100_000,
        "'" + "\\" * 250_000,
        "a." * 125_000,
    ):
        assert inspect({"x": 1}, code, len(code))["status"] == "ok"
    assert "print" in names({}, "x = '''\n'''\n" * 30_000 + "prin")
