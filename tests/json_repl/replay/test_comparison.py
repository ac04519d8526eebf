"""Two outcomes beside each other: what counts, and what doesn't."""

from __future__ import annotations

from typing import Any

from json_repl.replay.comparison import Comparison, Observed, compare
from json_repl.replay.normalizers import choose
from task_logger.record import ExecutionOutcome, NamespaceChanges

ALL = choose(["all"])


def seen(*, is_settled: bool = True, changes: Any = None, **fields: Any) -> Observed:
    given: dict[str, Any] = {"status": "ok", "route": "worker", "isolation": "process", "elapsed_ms": 1.0}
    outcome = ExecutionOutcome(**{**given, **fields}, changes=NamespaceChanges(**(changes or {})))
    return Observed(outcome=outcome, is_settled=is_settled)


def fields_of(found: Comparison) -> list[str]:
    return [difference.field for difference in found.differences]


def test_times_and_isolation_are_not_compared() -> None:
    assert compare(seen(), seen(elapsed_ms=900.0, isolation="sandbox", snapshot="s:1")) == Comparison()


def test_an_image_is_compared_exactly_whatever_is_normalized() -> None:
    one, other = ({"image/png": f"iVBOR0x{digit}12345678", "text/plain": "<Figure>"} for digit in "78")
    found = compare(seen(displays=[one]), seen(displays=[other]), ALL)
    assert [(each.field, each.line, each.column) for each in found.differences] == [
        ("displays[0][image/png]", 1, 8)
    ]
    assert fields_of(compare(seen(result=one), seen(result=other), ALL)) == ["result[image/png]"]


def test_a_display_or_a_type_that_is_missing_differs() -> None:
    shown = {"text/plain": "1"}
    assert fields_of(compare(seen(displays=[shown]), seen())) == ["displays[0][text/plain]"]
    both = {"text/plain": "1", "text/html": "<b>1</b>"}
    assert fields_of(compare(seen(result={"text/plain": "1"}), seen(result=both))) == ["result[text/html]"]


def test_changes_in_place_count_only_where_every_search_had_ended() -> None:
    changed: dict[str, Any] = {"changed_vars": ("x",)}
    assert fields_of(compare(seen(changes=changed), seen())) == ["changed_vars"]
    for other in (seen(changes={"diff_complete": False}), seen(is_settled=False)):
        found = compare(seen(changes=changed), other)
        assert (fields_of(found), found.left_out) == ([], ("changed_vars",))


def test_modules_count_only_on_the_same_route_and_the_workers_own_never() -> None:
    changes = {"added_imports": ("json", "repl_kernel.limits")}
    assert fields_of(compare(seen(changes=changes), seen(changes={"added_imports": ("json",)}))) == []
    assert fields_of(compare(seen(changes=changes), seen())) == ["added_imports"]
    found = compare(seen(route="local", changes=changes), seen())
    assert (fields_of(found), found.left_out) == ([], ("added_imports",))


def test_a_normalizer_hides_nothing_in_names() -> None:
    one, other = ({"added_vars": (f"at_0x7f00112233{digit}",)} for digit in "12")
    assert fields_of(compare(seen(changes=one), seen(changes=other), ALL)) == ["added_vars"]


def test_a_difference_beside_a_hidden_one_is_told_at_its_own_place() -> None:
    one = seen(stdout="at 0x7f0011223344, took 5 ms: ada\n")
    other = seen(stdout="at 0x55aabbccddeeff, took 1234 ms: bob\n")
    (difference,) = compare(one, other, ALL).differences
    assert (difference.line, difference.column) == (1, len("at 0x7f0011223344, took 5 ms: ") + 1)
    assert difference.recorded.endswith("ada\n")
