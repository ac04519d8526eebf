"""The doctests of the standard library as sessions with known output."""

from __future__ import annotations

import os
import traceback
from pathlib import Path

import pytest

from benchmarks.doctest_corpus import Docstring, Example
from benchmarks.doctest_replay import exception_text, replay
from benchmarks.doctests import QUICK, ROUTES, is_right, measure, table
from benchmarks.forking import ForkFailed, call_in_fork
from json_repl.session import Session

SAMPLE = (
    *QUICK,
    "decimal",
    "fractions",
    "ipaddress",
    "more_itertools.more",
    "statistics",
    "string",
    "test.test_extcall",
    "test.test_generators",
    "test.test_listcomps",
    "test.test_setcomps",
    "test.test_syntax",
)


@pytest.mark.slow
def test_a_sample_of_the_doctests_gives_the_same_on_both_routes() -> None:
    found = measure(SAMPLE)
    assert is_right(found), table(found)
    for route in ROUTES:
        # Debian ships Python without its own tests, which hold half of the doctests.
        assert found["routes"][route]["compared"] > 700


@pytest.mark.slow
def test_all_doctests_give_the_same_on_both_routes() -> None:
    found = measure()
    assert is_right(found), table(found)


def test_a_wrong_expectation_is_a_mismatch_on_both_routes(log_root: Path) -> None:
    example = {"got": "", "flags": 0, "is_interactive_only": False, "is_skipped": False}
    examples = [
        Example(source="1 + 1\n", want="3\n", error=None, **example),  # type: ignore[arg-type]  # the others
        Example(source="1 / 0\n", want="", error="ZeroDivisionError: other words\n", **example),  # type: ignore[arg-type]
        Example(source="1 / 0\n", want="", error=None, **example),  # type: ignore[arg-type]
        Example(source="print(1)\n", want="", error="ValueError\n", **example),  # type: ignore[arg-type]
        Example(source="1 + 1\n", want="2\n", error=None, **example),  # type: ignore[arg-type]
    ]
    docstring = Docstring(name="wrong", module="string", features=[], examples=examples)
    for route in ROUTES:
        with Session(route=route) as session:  # type: ignore[arg-type]  # two literals
            found = replay(session, docstring)
        assert [wrong.number for wrong in found.mismatches] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    "code",
    [
        "raise ValueError('two\\nlines')",
        "import decimal\ndecimal.Decimal('x')",
        "try:\n    1 / 0\nexcept ZeroDivisionError as exc:\n    raise KeyError('k') from exc",
        "class Local(Exception):\n    pass\nraise Local",
        "raise ExceptionGroup('several', [ValueError(1), KeyError(2)])",
        "1 +",
        "if 1:\nx",
        "exec('a b')",
    ],
)
def test_the_text_of_an_exception_is_what_doctest_compares(code: str, log_root: Path) -> None:
    with Session("local") as session:
        error = session.execute_code(code)["error"]
    namespace = {"__name__": "__main__"}
    try:
        exec(compile(code, "<text>", "exec"), namespace)
    except Exception as exc:  # noqa: BLE001  # whatever the code raises
        lines = traceback.format_exception_only(exc)
        if isinstance(exc, SyntaxError):
            lines = [line for line in lines if not line.startswith(" ")]
        assert exception_text(error) == "".join(lines)
    else:
        pytest.fail("nothing was raised")


def test_a_forked_call_that_dies_is_told_from_one_that_raises_or_takes_too_long() -> None:
    with pytest.raises(ForkFailed, match="ends its process with -9"):
        call_in_fork(lambda: os.kill(os.getpid(), 9), 10)
    with pytest.raises(ForkFailed, match="ValueError: no"):
        call_in_fork(lambda: (_ for _ in ()).throw(ValueError("no")), 10)
    with pytest.raises(ForkFailed, match="takes over"):
        call_in_fork(lambda: os.read(os.pipe()[0], 1), 0.2)
    assert call_in_fork(lambda: [1, "2"], 10) == [1, "2"]
