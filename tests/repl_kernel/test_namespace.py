"""What an execution is said to have done to its namespace."""

from __future__ import annotations

import gc
import sys
import weakref
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from repl_kernel import namespace
from repl_kernel.namespace import NamespaceWatcher
from task_logger.record import NO_CHANGES, NamespaceChanges

LONG_NS = 10**12


class Watch:
    """A namespace with its watcher."""

    def __init__(self, *cells: str) -> None:
        self.namespace: dict[str, Any] = {"__name__": "watched"}
        self.watcher = NamespaceWatcher(self.namespace, frozenset({"put_there"}))
        for cell in cells:
            self.run(cell)

    def run(self, cell: str, elapsed_ns: int = LONG_NS) -> NamespaceChanges:
        code = compile(cell, "<cell>", "exec")
        exec(code, self.namespace)
        return self.watcher.changes(code, elapsed_ns)


def test_added_rebound_and_removed_names_are_told_apart() -> None:
    watch = Watch("a = 1; b = [1]; c = 'x'")
    changes = watch.run("z = y = 2; a = 3; del c")
    assert changes.added_vars == ["y", "z"]
    assert changes.changed_vars == ["a"]
    assert changes.removed_vars == ["c"]
    assert changes.variables == {"y": {"type": "int"}, "z": {"type": "int"}, "a": {"type": "int"}}
    assert changes.diff_complete


def test_nothing_done_is_nothing_told() -> None:
    watch = Watch("a = 1; b = [1, {2: 'x'}]; f = len; s = 'text' * 3")
    assert watch.run("a + 1; b[0]") is NO_CHANGES
    assert watch.run("a = 1; s = 'texttexttext'") is NO_CHANGES
    assert watch.run("b = b") is NO_CHANGES
    assert watch.run("try: b\nexcept NameError: b = []") is NO_CHANGES


def test_private_and_hidden_names_are_no_variables() -> None:
    watch = Watch("_p = [1]")
    assert watch.run("_p.append(2); _q = 1; put_there = [1]; __x = 2") is NO_CHANGES
    assert watch.run("put_there = 3; del _p") is NO_CHANGES


@pytest.mark.parametrize(
    ("before", "after"),
    [("1", "True"), ("1", "1.0"), ("0.0", "-0.0"), ("'a'", "b'a'"), ("None", "...")],
)
def test_an_equal_atom_that_is_not_the_same_value_is_a_change(before: str, after: str) -> None:
    assert Watch(f"x = {before}").run(f"x = {after}").changed_vars == ["x"]


def test_not_a_number_bound_again_is_no_change() -> None:
    assert Watch("x = float('nan')").run("x = float('nan')") is NO_CHANGES


@pytest.mark.parametrize(
    "cell",
    [
        "del x; x = MAKE",
        "x = None; x = MAKE",
        "for _ in range(3):\n  x = None\n  x = MAKE",
        "globals().pop('x'); x = MAKE; y = 1; del y",
        "def f():\n  global x\n  del x\n  x = MAKE\nf(); del f",
    ],
)
@pytest.mark.parametrize("make", ["object()", "[1]", "(lambda: 1)", "'long' * 5000", "iter([])"])
def test_a_new_object_at_the_address_of_the_old_one_is_a_rebinding(cell: str, make: str) -> None:
    for other in ("", "last = 1"):
        watch = Watch(f"x = {make}", other)
        for _ in range(5):
            assert "x" in watch.run(cell.replace("MAKE", make)).changed_vars


def test_a_name_deleted_elsewhere_and_bound_again_is_a_rebinding() -> None:
    watch = Watch("x = object(); last = 1")
    watch.namespace["helper"] = lambda: watch.namespace.update(x=[watch.namespace.pop("x"), object()][1])
    watch.run("pass")
    assert watch.run("helper()").changed_vars == ["x"]


MUTATIONS = [
    ("[1]", "x.append(2)"),
    ("[1, 2]", "x[0] = 3"),
    ("[2, 1]", "x.sort()"),
    ("{'a': 1}", "x['b'] = 1"),
    ("{'a': 1}", "x['z'] = x.pop('a')"),
    ("{1}", "x.add(2)"),
    ("bytearray(b'abc')", "x[1] = 0"),
    ("__import__('collections').deque([1])", "x.append(2)"),
    ("__import__('collections').OrderedDict(a=1, b=2)", "x.move_to_end('a')"),
    ("__import__('collections').defaultdict(list)", "x['new']"),
    ("__import__('collections').Counter('a')", "x['b'] = x.pop('a')"),
    ("__import__('array').array('i', [1, 2])", "x[0] = 5"),
    ("__import__('types').SimpleNamespace(a=1)", "x.a = 2"),
    ("Thing()", "x.a = 1"),
    ("Thing()", "x.__dict__['b'] = 1"),
    ("Thing()", "x.__class__ = Other"),
    ("Slotted()", "x.a = 2"),
    ("Listlike([1])", "x.append(2)"),
    ("Dictlike(a=1)", "x['b'] = x.pop('a')"),
    ("(1, [2])", "x[1].append(3)"),
    ("[{'k': ({1: [bytearray(b'q')]},)}]", "x[0]['k'][0][1][0][0] = 1"),
    ("[Thing()]", "x[0].deep = 1"),
    (
        "[[__import__('datetime').date(2020, 1, 1)]]",
        "x[0].pop(); x[0].append(__import__('datetime').date(2021, 1, 1))",
    ),
    ("np.zeros(5)", "x[3] = 1"),
    ("np.zeros((300, 300))", "x[299, 299] = 1"),
    ("np.zeros((4, 4))[::2, ::2]", "x[1, 1] = 1"),
    ("np.asfortranarray(np.zeros((4, 4)))", "x[1, 2] = 1"),
    ("np.array(['2020-01-01'], dtype='M8[D]')", "x[0] = '2021-01-01'"),
    ("np.array([[1], {}], dtype=object)", "x[1]['a'] = 1"),
    ("np.zeros(2, dtype=[('a', 'i4'), ('b', 'f8')])", "x['b'][1] = 2"),
    ("np.ma.zeros(3)", "x[1] = np.ma.masked"),
    ("{'deep': [np.zeros(3)]}", "x['deep'][0][1] = 1"),
    ("pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})", "x.loc[0, 'a'] = 9"),
    ("pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})", "x.loc[0, 'b'] = 'z'"),
    ("pd.DataFrame({'a': [1, 2]})", "x['c'] = 1"),
    ("pd.DataFrame({'a': [1, 2]})", "x.columns = ['q']"),
    ("pd.DataFrame({'a': [1, 2]})", "x.index.name = 'i'"),
    ("pd.DataFrame({'a': pd.Categorical(['u', 'v'])})", "x.loc[0, 'a'] = 'v'"),
    ("pd.DataFrame({'a': pd.array([1, None], dtype='Int64')})", "x.loc[1, 'a'] = 3"),
    ("pd.DataFrame({'a': pd.to_datetime(['2020-01-01'])})", "x.loc[0, 'a'] = pd.Timestamp('2021-01-01')"),
    ("pd.Series([1, 2])", "x.iloc[1] = 5"),
]
CLASSES = """
import numpy as np, pandas as pd
class Thing: pass
class Other: pass
class Slotted:
    __slots__ = ('a',)
    def __init__(self): self.a = 1
class Listlike(list): pass
class Dictlike(dict): pass
"""


@pytest.mark.parametrize(("make", "mutate"), MUTATIONS)
def test_mutation_in_place_is_seen_under_every_name_that_reaches_the_object(make: str, mutate: str) -> None:
    watch = Watch(CLASSES, f"x = {make}", "alias = x; holder = [x]; untouched = [1, {2: 3}]")
    assert watch.run("x, alias, holder, untouched") is NO_CHANGES
    changes = watch.run(mutate)
    assert changes.changed_vars == ["alias", "holder", "x"]
    assert changes.diff_complete
    assert watch.run("x") is NO_CHANGES


def test_mutation_through_a_function_that_reads_the_name_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(namespace, "MIN_FIRST_NS", LONG_NS)  # for what is read; there is no time for the rest
    watch = Watch("store = []\ndef put(v): store.append(v)\ndef outer(): put(1)")
    assert watch.run("outer()", elapsed_ns=0).changed_vars == ["store"]


def test_a_list_that_contains_itself_is_searched() -> None:
    watch = Watch("x = []; x.append(x); x.append({'me': x})")
    assert watch.run("x") is NO_CHANGES
    assert watch.run("x[1]['more'] = 1").changed_vars == ["x"]


HOSTILE = """
calls = []
def note(name):
    def method(self, *args, **kwargs):
        _calls.append(name)
        raise RuntimeError(name)
    return method
_calls = calls
del calls
_names = '''__getattribute__ __getattr__ __eq__ __ne__ __hash__ __repr__ __str__ __len__ __bool__ __iter__
__reduce__ __reduce_ex__ __getstate__ __sizeof__ __dir__ __contains__ __getitem__ __index__ __int__ __format__
__call__ __del__ __array__ __buffer__ __copy__ __deepcopy__ __getnewargs__ __getnewargs_ex__
__instancecheck__ __lt__'''.split()
Meta = type('Meta', (type,), {name: note('meta' + name) for name in _names if name not in
    ('__call__', '__getattribute__', '__hash__', '__eq__', '__del__')} | {'__hash__': type.__hash__})
Bad = Meta('Bad', (), {name: note(name) for name in _names if name != '__del__'}
    | {'__class__': property(note('__class__')), '__dict__': property(note('__dict__')),
       'shape': property(note('shape'))})
bad = Bad()
_nested = [bad, {'k': bad}, (bad,)]
nested = _nested
"""


def test_nothing_of_the_users_is_called() -> None:
    watch = Watch(HOSTILE)
    recorded = watch.namespace["_calls"]
    recorded.clear()
    for cell in ("nested", "bad", "nested.append(1)", "del bad; bad = 1", "x = nested"):
        code = compile(cell, "<cell>", "exec")
        exec(code, watch.namespace)
        before = list(recorded)
        changes = watch.watcher.changes(code, LONG_NS)
        assert recorded == before
        assert changes.diff_complete
    assert watch.run("nested.append(2)").changed_vars == ["nested", "x"]


def test_names_that_are_not_strings_are_ignored_and_not_compared() -> None:
    watch = Watch(
        "class Odd:\n  def __hash__(self): return hash('a')\n  def __eq__(self, other): return 1/0", "c = 1"
    )
    watch.namespace[watch.namespace["Odd"]()] = 1
    assert watch.watcher.changes(None, LONG_NS) is NO_CHANGES
    assert watch.run("c = 2; d = 1").added_vars == ["d"]
    assert watch.run("del c").removed_vars == ["c"]


@pytest.mark.parametrize("make", ["Thing()", "[Thing()]", "{'a': Thing()}"])
def test_no_reference_is_kept_to_a_users_object(make: str) -> None:
    watch = Watch("died = []\nclass Thing:\n  def __del__(self): died.append(1)", f"x = {make}", "x")
    assert watch.run("x = None; alive = len(died)").changed_vars == ["died", "x"]
    assert watch.namespace["alive"] == 1


def test_no_reference_is_kept_to_a_users_class() -> None:
    watch = Watch("class Thing: pass\nx = [Thing()]", "x")
    reference = weakref.ref(watch.namespace["Thing"])
    watch.run("del x, Thing")
    gc.collect()
    assert reference() is None


def test_when_time_runs_out_rebinding_is_still_complete() -> None:
    watch = Watch("big = [[i, [str(i)]] for i in range(200_000)]; small = [1]; gone = {}; other = object()")
    changes = watch.run(
        "big[100][1].append(1); small = [1]; del gone; new = 1; other = None; other = object()", 0
    )
    assert not changes.diff_complete
    assert changes.added_vars == ["new"]
    assert changes.removed_vars == ["gone"]
    assert {"small", "other"} <= set(changes.changed_vars)


def test_a_mutation_that_could_not_be_searched_for_is_found_when_there_is_time() -> None:
    watch = Watch("big = [[i] for i in range(200_000)]")
    watch.run("big[7].append(1)", elapsed_ns=0)
    assert watch.run("pass").changed_vars == ["big"]


def test_nesting_deeper_than_the_interpreter_allows_is_said_to_be_unsearched() -> None:
    watch = Watch("deep = []\nfor _ in range(100_000): deep = [deep]", "x = [1]")
    changes = watch.run("deep; x.append(1)")
    assert changes.changed_vars == ["x"]
    assert not changes.diff_complete


def test_a_raised_recursion_limit_does_not_let_nesting_overrun_the_stack() -> None:
    limit = sys.getrecursionlimit()
    watch = Watch("deep = []\nfor _ in range(100_000): deep = [deep]")
    try:
        sys.setrecursionlimit(10**8)
        assert not watch.run("deep").diff_complete
        assert sys.getrecursionlimit() == 10**8
    finally:
        sys.setrecursionlimit(limit)


def test_new_modules_are_told_even_when_others_go() -> None:
    watch = Watch()
    names = ["watched_module_a", "watched_module_b"]
    try:
        sys.modules[names[0]] = ModuleType(names[0])
        assert watch.run("pass").added_imports == [names[0]]
        del sys.modules[names[0]]
        sys.modules[names[1]] = ModuleType(names[1])
        assert watch.run("pass").added_imports == [names[1]]
        sys.modules[names[1]] = ModuleType(names[1])
        assert watch.run("pass") is NO_CHANGES
    finally:
        for name in names:
            sys.modules.pop(name, None)


def test_reset_forgets_what_was() -> None:
    watch = Watch("a = [1]")
    watch.namespace["a"].append(2)
    watch.namespace["b"] = 1
    watch.watcher.reset()
    assert watch.run("pass") is NO_CHANGES


NAMES = st.sampled_from(["a", "b", "c", "d"])
VALUES = st.sampled_from(
    ["1", "2", "'s'", "1.5", "None", "[]", "[1]", "{}", "{'k': [1]}", "(1, [2])", "object()"]
)
OPERATIONS = st.one_of(
    st.tuples(st.just("bind"), NAMES, VALUES),
    st.tuples(st.just("delete"), NAMES, st.just("")),
    st.tuples(st.just("alias"), NAMES, NAMES),
    st.tuples(st.just("mutate"), NAMES, st.just("")),
)


class Model:
    """Slow and obviously right: keeps every object ever bound, and what it looked like."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {}
        self.looks: dict[str, str] = {}

    def changes(self, now: dict[str, Any]) -> tuple[list[str], list[str], list[str]]:
        added = sorted(now.keys() - self.names.keys())
        removed = sorted(self.names.keys() - now.keys())
        changed = []
        for name in sorted(now.keys() & self.names.keys()):
            before, value = self.names[name], now[name]
            atom = isinstance(value, int | str | float | type(None))
            same = type(before) is type(value) and before == value if atom else before is value
            if not same or self.looks[name] != repr(value):
                changed.append(name)
        self.kept = [self.names, getattr(self, "kept", None)]  # so that no address is used twice
        self.names, self.looks = dict(now), {name: repr(value) for name, value in now.items()}
        return added, changed, removed


def as_code(kind: str, name: str, detail: str) -> str:
    if kind == "bind":
        return f"{name} = {detail}"
    if kind == "delete":
        return f"globals().pop({name!r}, None)"
    if kind == "alias":
        return f"if {detail!r} in globals(): {name} = {detail}"
    return (
        f"_v = globals().get({name!r})\n"
        "if type(_v) is list: _v.append(len(_v))\n"
        "elif type(_v) is dict: _v[len(_v)] = [0]\n"
        "elif type(_v) is tuple: _v[1].append(0)\n"
        "_v = None"
    )


@settings(max_examples=150, deadline=None)
@given(st.lists(st.lists(OPERATIONS, max_size=5), max_size=12))
def test_random_cells_are_told_as_a_slow_model_tells_them(cells: list[list[tuple[str, str, str]]]) -> None:
    watch, model = Watch(), Model()
    for operations in cells:
        code = compile("\n".join(as_code(*operation) for operation in operations), "<cell>", "exec")
        exec(code, watch.namespace)
        variables = {name: value for name, value in watch.namespace.items() if name[:1] != "_"}
        expected = model.changes(variables)
        found = watch.watcher.changes(code, LONG_NS)
        assert found.diff_complete
        assert (list(found.added_vars), list(found.removed_vars)) == (expected[0], expected[2])
        # An object that was deleted and bound again within the cell is rebound, though it is the same one.
        assert set(expected[1]) <= set(found.changed_vars)
        if not any(kind in ("delete", "alias", "bind") for kind, _, _ in operations):
            assert list(found.changed_vars) == expected[1]
