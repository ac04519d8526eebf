"""What every route promises, whichever it is, recorded or not."""

# ruff: noqa: E501 -- the code under test is easier to read in one piece

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

import pytest

from json_repl.recorded import RecordedExecutor
from repl_kernel.errors import ExecutorClosed, RequestRefused
from repl_kernel.executor import Executor, OnInput, OnOutput
from repl_kernel.in_process import LocalExecutor
from repl_kernel.jupyter.kernel_executor import KernelExecutor
from repl_kernel.manager import WorkerExecutor
from task_logger.record import Artifact, ExecutionOutcome, ExecutionRequest, NamespaceChanges, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import new_session_id
from tests.conftest import PATIENCE_S, WaitUntil
from tests.executor_host import ExecutorInChild

ROUTES = ("local", "local in a process of ours", "worker", "jupyter")
TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="contract")


@dataclass
class Caller:
    """One executor, and the requests to it."""

    executor: Executor
    route: str
    session_id: str = field(default_factory=new_session_id)
    seq: int = 0
    opened: list[IO[bytes]] = field(default_factory=list)

    def run(
        self,
        code: str,
        *,
        time_limit_s: float | None = None,
        on_output: OnOutput | None = None,
        on_input: OnInput | None = None,
    ) -> ExecutionOutcome:
        self.seq += 1
        request = ExecutionRequest(
            code=code,
            session_id=self.session_id,
            seq=self.seq,
            task=TASK,
            timestamp="2026-11-20T10:00:00.000Z",
            time_limit_s=time_limit_s,
            allow_input=on_input is not None,
        )
        outcome = self.executor.execute(request, on_output, on_input)
        contents = (artifact.content for artifact in outcome.artifacts)
        self.opened += (
            content for content in contents if content is not None and not isinstance(content, bytes)
        )
        return outcome

    def value(self, code: str) -> str | None:
        """The result's text of code that must end well."""
        outcome = self.run(code)
        assert (outcome.status, outcome.error) == ("ok", None), outcome
        return None if outcome.result is None else str(outcome.result["text/plain"])

    def run_into_limit(self, code: str) -> tuple[ExecutionOutcome, float]:
        """Run code into a time limit that it sees coming: it sets `reached`; returns the limit as well.

        One that has passed before, on a busy machine, is tried again with more time.
        """
        for limit_s in (0.3, 3.0, PATIENCE_S):
            outcome = self.run(code, time_limit_s=limit_s)
            assert (outcome.status, list(outcome.notices)) == ("timeout", [])
            if self.value("'reached' in globals()") == "True":
                break
        return outcome, limit_s

    def changes(self, code: str) -> NamespaceChanges:
        """What code that must end well did to the names; looked for again where time ran out."""
        outcome = self.run(code)
        assert (outcome.status, outcome.error) == ("ok", None), outcome
        found = outcome.changes
        changed = set(found.changed_vars)
        deadline = time.monotonic() + PATIENCE_S
        while not found.diff_complete:
            assert time.monotonic() < deadline
            found = self.run("import time\ntime.sleep(0.1)").changes
            changed.update(found.changed_vars)
        return replace(outcome.changes, changed_vars=sorted(changed))

    def run_until_output(self, code: str, then: Callable[[], object]) -> ExecutionOutcome:
        """Run code; once it has printed something, call `then` in another thread."""
        printed = threading.Event()

        def wait_and_act() -> None:
            assert printed.wait(PATIENCE_S)
            then()

        acting = threading.Thread(target=wait_and_act)
        acting.start()
        try:
            return self.run(code, on_output=lambda *_: printed.set())
        finally:
            printed.set()
            acting.join()


_NAMES = "Jupyter's protocol doesn't tell what code did to the names of its kernel"
_IPYTHON = "IPython shows errors in its own way: "

NOT_ON_JUPYTER = {
    "test_the_value_of_a_last_expression_is_the_result": "IPython shows no value after a semicolon",
    "test_an_exception_comes_in_parts_with_the_users_frames_only": _IPYTHON + "its tracebacks",
    "test_chained_and_grouped_exceptions_show_no_frames_of_ours": _IPYTHON + "its tracebacks",
    "test_code_that_is_not_python_is_an_error_with_its_line": "ipykernel shows no text with lone surrogates",
    "test_leaving_the_interpreter_is_an_error_and_the_namespace_lives_on": "exit() ends an ipykernel",
    "test_changes_of_the_namespace_are_told": _NAMES,
    "test_variables_are_described_by_name": _NAMES,
    "test_a_restart_empties_the_namespace": _NAMES,
    "test_an_object_that_lies_about_its_class_is_a_variable": _NAMES,
    "test_names_with_odd_letters_are_variables": _NAMES,
    "test_an_endless_loop_ends_at_its_time_limit_and_the_next_execution_is_right": _NAMES,
    "test_asking_leaves_no_trace_in_the_next_outcome": _NAMES,
    "test_code_that_ends_in_time_is_not_touched_by_its_limit": (
        "an interrupt may reach a kernel after the code that it was for, and then the next one"
    ),
    "test_what_can_be_typed_next_is_told": "IPython's answers say more, and load jedi for seconds",
    "test_a_completion_replaces_from_the_start_of_what_is_typed_to_the_cursor": "as above",
    "test_what_is_known_of_a_name_is_told": "IPython's answers are its own",
    "test_the_source_is_told_where_it_is_asked_for": "IPython's answers are its own",
    "test_long_values_and_documentation_are_capped": "IPython's answers are its own",
    "test_objects_that_misbehave_when_asked_are_not_waited_for": "IPython's completer loads jedi for seconds",
    "test_lone_surrogates_come_out_escaped_and_are_named": "ipykernel sends no text with lone surrogates",
    "test_an_exception_with_a_surrogate_keeps_type_and_text": "ipykernel sends no text with lone surrogates",
    "test_any_value_has_its_repr_as_result": "IPython prints values in its own way",
    "test_a_repr_that_misbehaves_is_no_failure": "IPython shows no value whose repr fails",
    "test_an_exception_that_cannot_be_described_is_still_an_error": _IPYTHON + "it fails at these",
    "test_a_closed_stream_works_in_the_next_execution": "ipykernel's stdout stays closed",
    "test_code_that_asks_without_leave_gets_an_error_that_says_how": "ipykernel's error is its own",
    "test_the_debugger_does_not_wait_for_input": "IPython's debugger ends without an error",
    "test_a_caller_that_allows_it_answers_input": "ipykernel's sys.stdin is empty",
    "test_an_interrupt_from_another_thread_ends_a_loop_and_keeps_what_was": _IPYTHON + "its tracebacks",
    "test_top_level_await_runs_on_a_loop_that_persists": "ipykernel runs code in a loop of its own",
    "test_no_task_of_an_interrupted_execution_is_left": "ipykernel has tasks of its own",
}
"""Sentences that ipykernel doesn't keep, whoever asks it, and why."""

KINDS = {
    f"{route}, recorded" if recorded else route: (route, recorded)
    for route in ROUTES
    for recorded in (False, True)
}


def _param(name: str) -> Any:
    """A kind; that a record changes nothing is shown on the worker route always, on the others if slow tests run."""
    route, recorded = KINDS[name]
    marks = [pytest.mark.slow] if (recorded and route != "worker") or route == "jupyter" else []
    return pytest.param((route, recorded), id=name, marks=marks)


@pytest.fixture(params=[_param(name) for name in KINDS])
def caller(request: pytest.FixtureRequest, log_root: Path, no_leaks: None) -> Iterator[Caller]:
    """A caller of each route, with and without a record."""
    route, recorded = request.param
    if route == "jupyter" and (reason := NOT_ON_JUPYTER.get(request.node.originalname)):
        pytest.skip(reason)
    inner: Executor
    if route == "worker":
        inner = WorkerExecutor()
    elif route == "local":
        inner = LocalExecutor()
    elif route == "jupyter":
        inner = KernelExecutor("python3")
    else:
        inner = child = ExecutorInChild()
    caller = Caller(inner, route)
    if recorded:

        def open_log(task: TaskIds) -> SessionLog:
            return SessionLog(
                root=str(log_root),
                task=task,
                session_id=caller.session_id,
                route=inner.route,
                isolation=inner.isolation,
            )

        caller.executor = RecordedExecutor(inner, open_log, open_log(TASK), TASK)
    yield caller
    caller.executor.close()
    for content in caller.opened:
        content.close()
    if route == ROUTES[1]:
        child.end()
        assert child.outer_output == b""


def content_of(artifact: Artifact, log_root: Path) -> bytes:
    """The bytes of an artifact, stored or not."""
    content: bytes | IO[bytes] | None = artifact.content
    if content is None:
        stored = [path for path in log_root.rglob(f"*{artifact.sha256[2:]}*") if path.is_file()]
        assert len(stored) == 1, stored
        return stored[0].read_bytes()
    if isinstance(content, bytes):
        return content
    content.seek(0)
    return content.read()


# What comes back


def test_the_value_of_a_last_expression_is_the_result(caller: Caller) -> None:
    assert caller.value("1 + 1") == "2"
    assert caller.value("x = [1]\nx") == "[1]"
    assert caller.value("x = 1") is None
    assert caller.value("None") is None
    assert caller.value("1;") == "1"
    assert caller.value("if True:\n    5") is None


def test_names_live_on_from_one_execution_to_the_next(caller: Caller) -> None:
    caller.value("import math\ndef area(r):\n    return math.pi * r\nk = 2")
    assert caller.value("round(area(k), 2)") == "6.28"
    assert caller.value("__name__") == "'__main__'"


def test_output_is_split_by_stream_and_kept_in_order(caller: Caller) -> None:
    outcome = caller.run("import sys\nfor i in range(3):\n    print(i)\n    print(-i, file=sys.stderr)\n7")
    assert (outcome.stdout, outcome.stderr) == ("0\n1\n2\n", "0\n-1\n-2\n")
    assert outcome.result == {"text/plain": "7"}


def test_an_exception_comes_in_parts_with_the_users_frames_only(caller: Caller) -> None:
    caller.value("def inner(x):\n    return 1 / x\n")
    outcome = caller.run("print('before')\nvalue = 5\ninner(0)\n")
    assert outcome.status == "error"
    assert outcome.stdout == "before\n"
    error = outcome.error
    assert error
    assert (error.type, error.message, error.line) == ("ZeroDivisionError", "division by zero", 3)
    assert error.traceback.startswith("Traceback (most recent call last):\n")
    assert error.traceback.endswith("ZeroDivisionError: division by zero\n")
    assert "    inner(0)\n" in error.traceback
    assert "    return 1 / x\n" in error.traceback
    assert error.traceback.count("  File ") == 2
    assert outcome.stderr.endswith(error.traceback)
    assert caller.value("value") == "5"


def test_chained_and_grouped_exceptions_show_no_frames_of_ours(caller: Caller) -> None:
    chained = caller.run("try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise KeyError('k') from e")
    assert chained.error
    assert chained.error.traceback.count("  File ") == 2
    assert "direct cause" in chained.error.traceback
    grouped = caller.run("raise ExceptionGroup('two', [ValueError('a'), TypeError('b')])")
    assert grouped.error
    assert "ValueError: a" in grouped.error.traceback
    assert "TypeError: b" in grouped.error.traceback
    for outcome in (chained, grouped):
        assert "repl_kernel" not in outcome.stderr


@pytest.mark.parametrize(
    ("code", "kind", "line"),
    [
        ("x = 1\nx ==== 2", "SyntaxError", 2),
        ("if True:\nx", "IndentationError", 2),
        ("if True:\n\tx = 1\n        y = 2", "TabError", 3),
        ("return 5", "SyntaxError", 1),
        ("'unclosed", "SyntaxError", 1),
        ("x = 1\0", "ValueError", None),
        ("x = '\ud800'", "UnicodeEncodeError", None),
        ("await_ = 1\nyield 1", "SyntaxError", 2),
    ],
)
def test_code_that_is_not_python_is_an_error_with_its_line(
    caller: Caller, code: str, kind: str, line: int | None
) -> None:
    outcome = caller.run(code)
    assert outcome.status == "error"
    assert outcome.error
    if kind == "ValueError":
        assert outcome.error.type in ("ValueError", "SyntaxError")  # it depends on the version of Python
    else:
        assert outcome.error.type == kind
        assert outcome.error.line == line
    assert "repl_kernel" not in outcome.stderr


@pytest.mark.parametrize("code", ["", " ", "\n\n", "# only a comment", "\f", "pass", "x_ = 1\f"])
def test_code_without_a_value_is_still_an_execution(caller: Caller, code: str) -> None:
    assert caller.value(code) is None


def test_a_line_of_a_megabyte_and_a_declared_coding_are_code_like_any_other(caller: Caller) -> None:
    assert caller.value("len('" + "ä" * (1 << 20) + "')") == str(1 << 20)
    assert caller.value("# -*- coding: latin-1 -*-\n'ä'") == "'ä'"


@pytest.mark.parametrize("code", ["import sys; sys.exit(3)", "raise SystemExit(3)", "quit(3)", "exit(3)"])
def test_leaving_the_interpreter_is_an_error_and_the_namespace_lives_on(caller: Caller, code: str) -> None:
    caller.value("kept = 1")
    outcome = caller.run(code)
    assert outcome.status == "error"
    assert outcome.error
    assert (outcome.error.type, outcome.error.message) == ("SystemExit", "3")
    assert caller.value("kept") == "1"
    caller.value("import sys\nsys.stdin.readable()")


def test_a_keyboard_interrupt_of_the_codes_own_is_an_error(caller: Caller) -> None:
    outcome = caller.run("raise KeyboardInterrupt('mine')")
    assert outcome.status == "error"
    assert outcome.error
    assert outcome.error.type == "KeyboardInterrupt"


def test_a_future_import_holds_for_the_executions_that_follow(caller: Caller) -> None:
    caller.value("from __future__ import annotations")
    caller.value("def f(x: not_defined_anywhere): ...")
    assert caller.value("f.__annotations__") == "{'x': 'not_defined_anywhere'}"


def test_changes_of_the_namespace_are_told(caller: Caller) -> None:
    caller.run("import time")
    changes = caller.changes("import colorsys\nb = 2\na = [1]\n_hidden = 1")
    assert (list(changes.added_vars), list(changes.changed_vars)) == (["a", "b", "colorsys"], [])
    assert "colorsys" in changes.added_imports or caller.route == "local"
    changes = caller.changes("a.append(2)\nb = 3\nc = 1")
    assert (list(changes.added_vars), list(changes.changed_vars)) == (["c"], ["a", "b"])
    changes = caller.changes("del b")
    assert list(changes.removed_vars) == ["b"]


def test_variables_are_described_by_name(caller: Caller) -> None:
    caller.value("text = 'abc'\nnumbers = [1, 2, 3]\n_private = 1")
    found = {str(variable["name"]): variable for variable in caller.executor.variables()}
    assert list(found) == ["numbers", "text"]
    assert (found["numbers"]["type"], found["numbers"]["length"]) == ("list", 3)


def test_a_restart_empties_the_namespace(caller: Caller) -> None:
    caller.value("x = 1")
    caller.executor.restart()
    outcome = caller.run("x")
    assert outcome.error
    assert outcome.error.type == "NameError"
    assert list(caller.run("y = 1").changes.added_vars) == ["y"]


def test_the_execution_after_a_restart_names_the_empty_namespace_as_its_parent(caller: Caller) -> None:
    caller.executor.restart()
    assert caller.run("1").parent is None  # the first of its session
    assert caller.run("2").parent is None  # the line before
    caller.executor.restart()
    assert caller.run("3").parent == f"{caller.session_id}:0"
    assert caller.run("4").parent is None


# What can be typed next, and what is known of it


def complete(caller: Caller, code: str, cursor: int | None = None, *, is_known: bool = True) -> Any:
    """The reply; one that `is_known` to have matches is asked for again where it came too late."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        reply: Any = caller.executor.complete(code, len(code) if cursor is None else cursor)
        if reply["matches"] or not is_known or time.monotonic() > deadline:
            return reply


def matches(caller: Caller, code: str, *, is_known: bool = True) -> Any:
    return complete(caller, code, is_known=is_known)["matches"]


def known(caller: Caller, code: str, *, is_known: bool = True, detail_level: int = 0) -> str | None:
    deadline = time.monotonic() + PATIENCE_S
    while True:
        reply: Any = caller.executor.inspect(code, len(code), detail_level)
        assert reply["found"] == ("text/plain" in reply["data"])
        if reply["found"] or not is_known or time.monotonic() > deadline:
            text: str | None = reply["data"].get("text/plain")
            return text


POINT = """\
class Point:
    'A place.'
    color = 'red'
    def __init__(self, x):
        self.x = x
    @property
    def norm(self):
        raise SystemExit('a property was asked')
    def moved(self, by: int = 1) -> 'Point':
        'Moves it.'
        return Point(self.x + by)
point = Point(3)
colors = {'red': 1, 'reddish': 2, "it's": 3, 4: 5}
"""


NEXT: list[tuple[str, list[str] | None]] = [
    ("poi", ["point"]),
    ("Poi", ["Point"]),
    ("whi", ["while"]),
    ("isins", ["isinstance"]),
    ("point.", ["color", "moved", "norm", "x"]),
    ("point.__cla", ["__class__"]),
    ("point.x.bit_c", ["bit_count"]),
    ("point.norm.", []),
    ("print(poi", ["point"]),
    ("point.moved().", []),
    ("colors['re", ["red", "reddish"]),
    ('colors["it', ["it's"]),
    ("colors['it", ["it\\'s"]),
    ("'poi", []),
    ("1 # poi", []),
    ("nobody.", []),
    ("1.re", []),
    ("import colors", ["colorsys"]),
    ("import os, colors", ["colorsys"]),
    ("import email.mime.a", ["email.mime.application", "email.mime.audio"]),
    ("from email.mime import (text, im", ["image"]),
    ("from os import getpi", ["getpid"]),
    ("x = 1; from os import getpi", ["getpid"]),
    ("\n\n", None),
    ("", None),
]


def test_what_can_be_typed_next_is_told(caller: Caller) -> None:
    caller.value(POINT)
    for code, expected in NEXT:
        found = matches(caller, code, is_known=expected != [])
        assert (code, found) == (code, expected) if expected is not None else {"point", "while"} <= set(found)


def test_a_completion_replaces_from_the_start_of_what_is_typed_to_the_cursor(caller: Caller) -> None:
    caller.value(POINT)
    reply = complete(caller, "'\U0001f600' + point.mo + 1", len("'\U0001f600' + point.mo"))
    assert reply == {
        "status": "ok",
        "matches": ["moved"],
        "cursor_start": len("'\U0001f600' + point."),
        "cursor_end": len("'\U0001f600' + point.mo"),
        "metadata": {},
    }
    assert matches(caller, "\ud800 = 1; poi") == ["point"]


KNOWN: list[tuple[str, list[str] | None]] = [
    ("point", ["Type:      Point", "A place."]),
    ("point.moved", ["moved(by: int = 1) -> 'Point'", "Moves it."]),
    ("point.moved(1, ", ["moved(by: int = 1)"]),
    ("len(point.moved('x", ["moved(by: int = 1)"]),
    ("point.norm", ["property"]),
    ("Point", ["Signature: Point(x)", "A place."]),
    ("colors", ["Length:    4", "'reddish'"]),
    ("len", ["len(obj, /)"]),
    ("while", None),
    ("nobody", None),
    ("# point", None),
    ("", None),
]


def test_what_is_known_of_a_name_is_told(caller: Caller) -> None:
    caller.value(POINT)
    for code, said in KNOWN:
        text = known(caller, code, is_known=said is not None)
        assert (code, text is None) == (code, said is None)
        assert [part for part in said or () if part not in str(text)] == []


def test_the_source_is_told_where_it_is_asked_for(caller: Caller) -> None:
    caller.value("def f():\n    return 'the source'\n")
    assert "the source" not in str(known(caller, "f"))
    assert "    return 'the source'\n" in str(known(caller, "f", detail_level=1))


def test_long_values_and_documentation_are_capped(caller: Caller) -> None:
    caller.value(
        "text = 'x' * 10**7\nclass Long:\n    __doc__ = 'd' * 10**7\n    def __repr__(self): return text\nlong = Long()"
    )
    for name in ("text", "long", "Long"):
        assert len(str(known(caller, name))) < 100_000


def test_a_cursor_outside_the_code_is_a_clear_error(caller: Caller) -> None:
    asked = [
        (ask, at) for ask in (caller.executor.complete, caller.executor.inspect) for at in (-1, 2, 10**30)
    ]
    for ask, cursor in asked:
        with pytest.raises(RequestRefused, match=f"cursor is {cursor}, the code has 1 code points"):
            ask("\U0001f600", cursor)
    assert caller.value("1") == "1"


@pytest.mark.parametrize(
    "body",
    ["while True: pass", "import time; time.sleep(3600)", "return sum(iter(int, 1))", "raise KeyError"],
)
def test_objects_that_misbehave_when_asked_are_not_waited_for(caller: Caller, body: str) -> None:
    if "sleep" in body and caller.route != ROUTES[1]:
        pytest.skip(
            "in a process of somebody else's nothing ends a call that blocks; in a worker all is ended alike"
        )
    if "sum" in body and caller.route != "worker":
        pytest.skip("C code that never comes back to Python is ended in a worker only")
    caller.value(
        "class Odd:\n"
        + "".join(f"    def {name}(self):\n        {body}\n" for name in ("__dir__", "__repr__"))
        + "odd, kept = Odd(), 1"
    )
    pid = caller.value("import os\nos.getpid()")
    assert matches(caller, "odd.", is_known=False) == []
    caller.executor.inspect("odd", 3)
    assert matches(caller, "kep") == ["kept"]
    assert caller.value("os.getpid()") == pid


def test_asking_leaves_no_trace_in_the_next_outcome(caller: Caller) -> None:
    caller.value(
        "class Loud:\n    def __dir__(self):\n        print('asked')\n        return ['loud_name']\n"
        "    def __repr__(self):\n        print('asked')\n        return input()\nloud = Loud()"
    )
    assert matches(caller, "loud.") == ["loud_name"]
    known(caller, "loud", is_known=False)
    matches(caller, "import email.", is_known=False)
    matches(caller, "from colorsys import ", is_known=False)
    outcome = caller.run("x = 1")
    assert (outcome.stdout, outcome.stderr) == ("", "")
    changes = outcome.changes
    assert (list(changes.added_vars), list(changes.changed_vars), list(changes.added_imports)) == (
        ["x"],
        [],
        [],
    )
    assert outcome.notices == ()


# Texts and values that break encoders


def test_lone_surrogates_come_out_escaped_and_are_named(caller: Caller, log_root: Path) -> None:
    outcome = caller.run("print('a\\ud800b')")
    assert outcome.stdout == "a\\ud800b\n"
    assert "stdout" in outcome.lossy
    [artifact] = outcome.artifacts
    assert content_of(artifact, log_root) == "a\ud800b\n".encode("utf-8", "surrogatepass")


def test_an_exception_with_a_surrogate_keeps_type_and_text(caller: Caller) -> None:
    outcome = caller.run("raise Exception('\\ud8ff')")
    assert outcome.error
    assert outcome.error.type == "Exception"
    assert outcome.error.message in ("\\ud8ff", "\ud8ff")
    assert "\\ud8ff" in outcome.stderr
    caller.run("import os\n{'\\ud800': 1}, os.fsdecode(b'\\xff')")
    assert caller.value("1") == "1"


def test_names_with_odd_letters_are_variables(caller: Caller) -> None:
    outcome = caller.run("ä = 1\n名 = 2\nglobals()['\\ud800'] = 3")
    assert {"ä", "名"} <= set(outcome.changes.added_vars)
    assert caller.value("ä + 名") == "3"


@pytest.mark.parametrize(
    "expression",
    [
        "float('nan')",
        "float('inf')",
        "2**64",
        "-2**70",
        "b'\\xff'",
        "1j",
        "{1, 2}",
        "{(1, 2): object}",
        "range",
    ],
)
def test_any_value_has_its_repr_as_result(caller: Caller, expression: str) -> None:
    assert caller.value(f"value = {expression}\nvalue") == repr(eval(expression))


def test_a_list_that_holds_itself_is_shown(caller: Caller) -> None:
    assert caller.value("l = []\nl.append(l)\nl") == "[[...]]"


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ("raise ValueError('no')", "ValueError"),
        ("return 5", "TypeError"),
        ("global Odd\n        del Odd\n        return 'gone'", "gone"),
        ("return type('S', (str,), {'__str__': lambda s: 1/0, '__len__': lambda s: -1})('sub')", "sub"),
        ("raise RecursionError", "RecursionError"),
    ],
)
def test_a_repr_that_misbehaves_is_no_failure(caller: Caller, body: str, shown: str) -> None:
    outcome = caller.run(f"class Odd:\n    def __repr__(self):\n        {body}\nodd = Odd()\nodd")
    assert outcome.status == "ok"
    assert outcome.result
    assert shown in str(outcome.result["text/plain"])


@pytest.mark.parametrize("raised", ["SystemExit(3)", "GeneratorExit()", "ValueError()", "RecursionError()"])
def test_an_exception_that_cannot_be_described_is_still_an_error(caller: Caller, raised: str) -> None:
    caller.value("kept = 1")
    outcome = caller.run(f"class Odd(Exception):\n    def __str__(self):\n        raise {raised}\nraise Odd")
    assert outcome.status == "error"
    assert outcome.error
    assert outcome.error.type == "Odd"
    assert caller.value("kept") == "1"


def test_an_object_that_lies_about_its_class_is_a_variable(caller: Caller) -> None:
    code = (
        "class Liar:\n    @property\n    def __class__(self):\n        raise ValueError\nliar = Liar()\nliar"
    )
    outcome = caller.run(code)
    assert outcome.status == "ok"
    assert "liar" in outcome.changes.added_vars


def test_endless_recursion_is_an_error(caller: Caller) -> None:
    outcome = caller.run("def f():\n    f()\nf()")
    assert outcome.error
    assert outcome.error.type == "RecursionError"
    assert caller.value("1") == "1"


def test_a_long_output_and_a_long_result_keep_their_ends_and_become_artifacts(
    caller: Caller, log_root: Path
) -> None:
    outcome = caller.run("print('start', 'x' * 3_000_000, 'end')\n'r' * 2_000_000")
    assert outcome.status == "ok"
    assert outcome.stdout.startswith("start xxx")
    assert outcome.stdout.endswith("xxx end\n")
    assert len(outcome.stdout) < 140_000
    assert "bytes left out" in outcome.stdout
    artifacts = {artifact.field: artifact for artifact in outcome.artifacts}
    expected = b"start " + b"x" * 3_000_000 + b" end\n"
    assert artifacts["stdout"].bytes == len(expected)
    assert content_of(artifacts["stdout"], log_root) == expected
    assert outcome.result
    whole = [artifact for name, artifact in artifacts.items() if name.startswith("result")]
    if whole:  # the record cuts it where the route doesn't
        assert content_of(whole[0], log_root) == repr("r" * 2_000_000).encode()
    else:
        assert len(str(outcome.result["text/plain"])) == 2_000_002
    assert caller.run("print('short')").stdout == "short\n"


# Streams and input


def test_output_arrives_while_the_code_runs(caller: Caller, tmp_path: Path) -> None:
    answer = tmp_path / "seen"
    pieces: list[tuple[str, str]] = []

    def on_output(name: str, text: str) -> None:
        pieces.append((name, text))
        answer.touch()

    code = f"""
import os, sys, time
print('x', end='')
until = time.monotonic() + {PATIENCE_S}
while not os.path.exists({str(answer)!r}) and time.monotonic() < until:
    time.sleep(0.001)
print(os.path.exists({str(answer)!r}), file=sys.stderr)
"""
    outcome = caller.run(code, on_output=on_output)
    assert (outcome.stdout, outcome.stderr) == ("x", "True\n")
    assert "".join(text for name, text in pieces if name == "stdout") == "x"
    assert "".join(text for name, text in pieces if name == "stderr") == "True\n"


def test_output_arrives_soon_even_after_a_lot_of_it(caller: Caller, tmp_path: Path) -> None:
    answer = tmp_path / "seen"
    received = ""

    def on_output(name: str, text: str) -> None:
        nonlocal received
        received += text
        if received.endswith("?"):
            Path(f"{answer}.{received.count('?')}").touch()

    code = f"""
import os, time
print('x' * 3_000_000)
missed = []
for number in (1, 2, 3):
    time.sleep(0.15)  # longer than any timer of the streams
    print(end='?')
    until = time.monotonic() + {PATIENCE_S}
    while not (came := os.path.exists({str(answer)!r} + f'.{{number}}')) and time.monotonic() < until:
        time.sleep(0.001)
    if not came:
        missed.append(number)
missed
"""
    outcome = caller.run(code, on_output=on_output)
    assert outcome.result == {"text/plain": "[]"}


def test_passed_on_chunks_are_whole_and_no_longer_than_64_kib(caller: Caller) -> None:
    pieces: list[str] = []
    outcome = caller.run("print('é€𐍈' * 70_000, end='')", on_output=lambda _, text: pieces.append(text))
    assert "".join(pieces) == "é€𐍈" * 70_000 == outcome.stdout
    assert max(len(piece.encode()) for piece in pieces) <= 64 << 10


def test_what_one_execution_wrote_half_does_not_start_the_next_ones_stream(caller: Caller) -> None:
    half = "import sys\nn = sys.stdout.buffer.write(b'\\xe2\\x82')\nsys.stdout.flush()"
    pieces: list[str] = []
    caller.run(half, on_output=lambda _, text: pieces.append(text))
    pieces.clear()
    caller.run("print('a')", on_output=lambda _, text: pieces.append(text))
    assert "".join(pieces) == "a\n"


def test_a_stream_that_the_code_puts_in_place_stays_its_own(caller: Caller) -> None:
    caller.value("import io, sys\nold = sys.stdout\nsys.stdout = io.StringIO()\nn = print('kept')")
    if caller.route == "local":  # there it lasts as long as the execution: other threads print as well
        assert caller.run("print('back')").stdout == "back\n"
        return
    assert caller.run("print('more')").stdout == ""
    assert caller.value("sys.stdout.getvalue()") == "'kept\\nmore\\n'"
    caller.value("sys.stdout = old")
    assert caller.run("print('back')").stdout == "back\n"


def test_a_closed_stream_works_in_the_next_execution(caller: Caller) -> None:
    caller.run("import sys\nsys.stdout.close()\nsys.stdin.close()")
    assert caller.run("print('still')").stdout == "still\n"


@pytest.mark.parametrize(
    "code",
    [
        "input()",
        "input('name? ')",
        "import sys\nsys.stdin.read()",
        "import sys\nnext(sys.stdin)",
        "open(0).read()",
    ],
)
def test_code_that_asks_without_leave_gets_an_error_that_says_how(caller: Caller, code: str) -> None:
    if code.startswith("open"):
        if caller.route == "local":
            pytest.skip("descriptor 0 is the host's own")
        assert caller.value(code) == "''"
        return
    outcome = caller.run(code)
    assert outcome.error
    assert outcome.error.type == "EOFError"
    assert "input" in outcome.error.message


def test_the_debugger_does_not_wait_for_input(caller: Caller) -> None:
    if caller.route == "local":
        pytest.skip("pytest puts a debugger of its own into this process")
    for code in ("breakpoint()", "import pdb; pdb.set_trace()"):
        outcome = caller.run(f"x = 1\n{code}\nx = 2", time_limit_s=PATIENCE_S)
        assert outcome.status == "error"
    assert caller.value("1") == "1"


def test_a_caller_that_allows_it_answers_input(caller: Caller) -> None:
    asked: list[str] = []

    def on_input(prompt: str, is_password: bool) -> str:
        asked.append(prompt)
        return f"answer {len(asked)} ä"

    code = "a = input('first? ')\nimport sys\nb = sys.stdin.readline()\n[a, b]"
    outcome = caller.run(code, on_input=on_input)
    assert outcome.result == {"text/plain": "['answer 1 ä', 'answer 2 ä\\n']"}
    assert len(asked) == 2
    assert "first? " in asked[0] + outcome.stdout
    assert caller.run("input()").status == "error"


def test_a_caller_may_have_no_answer(caller: Caller) -> None:
    if caller.route == ROUTES[1]:
        pytest.skip("the proxy of these tests carries answers only")

    def on_input(prompt: str, is_password: bool) -> str:
        raise EOFError

    code = "try:\n    input()\nexcept EOFError as exc:\n    print('none', 'may not ask' in str(exc))"
    outcome = caller.run(code, on_input=on_input)
    assert outcome.stdout == "none False\n"


# Time limits and interrupts


def test_an_endless_loop_ends_at_its_time_limit_and_the_next_execution_is_right(caller: Caller) -> None:
    caller.value("kept = 1")
    outcome, limit_s = caller.run_into_limit("print('partial')\nreached = 2\nwhile True: pass")
    assert outcome.stdout == "partial\n"
    assert outcome.error
    assert outcome.error.type == "TimeLimitExceeded"
    assert f"limit of {limit_s:g} s" in outcome.error.message
    assert outcome.stderr.endswith(outcome.error.traceback)
    assert outcome.elapsed_ms >= 800 * limit_s
    assert list(outcome.changes.added_vars) == ["reached"]
    assert caller.value("kept + reached") == "3"


def test_code_that_ends_in_time_is_not_touched_by_its_limit(caller: Caller) -> None:
    for _ in range(20):
        assert caller.run("x = 1", time_limit_s=PATIENCE_S).status == "ok"
    limited = caller.run("y = 1", time_limit_s=1e-6)
    assert limited.status in ("ok", "timeout")
    assert caller.value("x") == "1"


def test_a_repr_that_never_ends_is_within_the_time_limit(caller: Caller) -> None:
    code = "class Endless:\n    def __repr__(self):\n        while True: pass\nEndless()"
    assert caller.run(code, time_limit_s=0.3).status == "timeout"
    assert caller.value("1") == "1"


def test_an_interrupt_from_another_thread_ends_a_loop_and_keeps_what_was(caller: Caller) -> None:
    answers: list[bool] = []
    code = "kept = [1]\nprint('going', end='')\nwhile True: pass"
    outcome = caller.run_until_output(code, lambda: answers.append(caller.executor.interrupt()))
    assert answers == [True]
    assert outcome.status == "interrupted"
    assert outcome.stdout == "going"
    assert outcome.error
    assert outcome.error.type == "KeyboardInterrupt"
    assert outcome.stderr.endswith("KeyboardInterrupt\n")
    assert caller.value("kept") == "[1]"


def test_code_that_handles_an_interrupt_goes_on(caller: Caller) -> None:
    code = "try:\n    print('going', end='')\n    while True: pass\nexcept KeyboardInterrupt:\n    print(' handled')\n5"
    outcome = caller.run_until_output(code, caller.executor.interrupt)
    assert (outcome.status, outcome.stdout) == ("ok", "going handled\n")
    assert outcome.result == {"text/plain": "5"}


def test_nothing_can_be_interrupted_where_nothing_runs(caller: Caller) -> None:
    assert caller.executor.interrupt() is False
    assert caller.value("1") == "1"
    assert caller.executor.interrupt() is False
    assert caller.value("sum(range(1000))") == "499500"


@pytest.mark.parametrize(
    "code",
    [
        "import time\ntime.sleep(60)",
        "import threading\nlock = threading.Lock()\nlock.acquire()\nlock.acquire()",
        "import threading, time\nt = threading.Thread(target=time.sleep, args=(60,), daemon=True)\nt.start()\nt.join()",
        "import re\nre.match('(a+)+b', 'a' * 40)",
        "x = 3 ** (10 ** 8)",
        "import select\nselect.select([], [], [])",
        "import subprocess\nsubprocess.run(['sleep', '60'])",
        "import asyncio\nawait asyncio.sleep(60)",
        "import asyncio\nasyncio.run(asyncio.sleep(60))",
        "import asyncio\nawait asyncio.gather(*(asyncio.sleep(60) for _ in range(100)))",
    ],
)
@pytest.mark.parametrize("caller", [_param(route) for route in ROUTES[1:]], indirect=True)
def test_blocking_calls_end_at_the_time_limit_in_processes_of_ours(caller: Caller, code: str) -> None:
    if caller.route == "jupyter" and "asyncio.run" in code:
        pytest.skip("ipykernel runs code in a loop already, and there can't be a second one")
    caller.value("kept = 1")
    outcome, limit_s = caller.run_into_limit(f"print('partial')\nreached = True\n{code}")
    assert outcome.stdout == "partial\n"
    assert outcome.elapsed_ms < 1000 * limit_s + 30_000  # what blocks for a minute has not ended by itself
    assert caller.value("kept") == "1"


# Awaiting


def test_top_level_await_runs_on_a_loop_that_persists(caller: Caller) -> None:
    caller.value("import asyncio\nasync def double(x):\n    await asyncio.sleep(0)\n    return 2 * x")
    assert caller.value("await double(4)") == "8"
    caller.value("loop = asyncio.get_event_loop()\nevent = asyncio.Event()\nawait double(1)")
    caller.value("task = loop.create_task(event.wait())\nawait asyncio.sleep(0)")
    assert caller.value("event.set()\nawait task") == "True"
    assert caller.value("[await double(i) for i in range(3)]") == "[0, 2, 4]"
    assert caller.value("asyncio.run(double(5))") == "10"
    assert caller.value("await double(6)") == "12"


def test_async_with_and_async_for_work_at_the_top_level(caller: Caller) -> None:
    caller.value("import contextlib\n@contextlib.asynccontextmanager\nasync def ctx():\n    yield 3")
    caller.value("async def count():\n    for i in range(3):\n        yield i")
    code = "total = 0\nasync with ctx() as c:\n    async for i in count():\n        total += i + c\ntotal"
    assert caller.value(code) == "12"


def test_no_task_of_an_interrupted_execution_is_left(caller: Caller) -> None:
    if caller.route == "local":
        pytest.skip("in a host's process an interrupt waits for the next bytecode")
    code = "import asyncio\nprint('x')\nawait asyncio.gather(*(asyncio.sleep(60) for _ in range(100)))"
    outcome = caller.run_until_output(code, caller.executor.interrupt)
    assert outcome.status == "interrupted"
    assert caller.value("await asyncio.sleep(0, len(asyncio.all_tasks()))") == "1"


# Sources


def test_tracebacks_of_functions_from_earlier_executions_show_their_lines(caller: Caller) -> None:
    caller.value("def fail():\n    raise LookupError('from the first')")
    caller.value("x = 1")
    outcome = caller.run("fail()")
    assert "raise LookupError('from the first')" in outcome.stderr
    assert caller.value("import inspect\ninspect.getsource(fail).splitlines()[0]") == "'def fail():'"


def test_classes_and_functions_of_the_user_can_be_pickled_and_their_source_found(caller: Caller) -> None:
    if caller.route == "local":
        pytest.skip("a host's __main__ is its own")
    caller.value(
        "class Point:\n    def __init__(self, x):\n        self.x = x\ndef twice(v):\n    return 2 * v\n"
    )
    assert caller.value("import pickle\npickle.loads(pickle.dumps(Point(4))).x") == "4"
    assert caller.value("pickle.loads(pickle.dumps(twice))(21)") == "42"
    if caller.route == "worker":
        assert caller.value("import inspect\ninspect.getsource(Point).splitlines()[0]") == "'class Point:'"


def test_a_dataclass_with_text_annotations_works(caller: Caller) -> None:
    code = "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int' = 1\nP().x"
    assert caller.value(code) == "1"


# Threads of the caller, and the end


def test_executions_of_several_threads_take_turns(caller: Caller) -> None:
    if caller.route == ROUTES[1]:
        pytest.skip("code runs on its main thread only")
    caller.value("total = 0")
    results: list[tuple[int, ExecutionOutcome]] = []
    lock = threading.Lock()

    def call(number: int) -> None:
        for _ in range(5):
            with lock if not isinstance(caller.executor, WorkerExecutor) else threading.Lock():
                outcome = caller.run(f"total += 1\nprint({number})\n{number} * 1000")
            results.append((number, outcome))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 40
    for number, outcome in results:
        assert outcome.stdout == f"{number}\n"
        assert outcome.result == {"text/plain": str(number * 1000)}
    assert caller.value("total") == "40"


def test_closing_twice_is_fine_and_a_closed_executor_says_so(caller: Caller) -> None:
    assert caller.value("1") == "1"
    caller.executor.close()
    caller.executor.close()
    if caller.route == ROUTES[1]:
        with pytest.raises(ExecutorClosed):
            caller.run("1")
        return
    with pytest.raises(Exception, match="closed"):
        caller.run("1")
    assert caller.executor.interrupt() is False


def test_closing_during_an_execution_interrupts_it(caller: Caller) -> None:
    started = time.monotonic()
    outcome = caller.run_until_output("print('x')\nwhile True: pass", caller.executor.interrupt)
    assert outcome.status == "interrupted"
    outcome = caller.run_until_output("print('x', end='')\nwhile True: pass", caller.executor.close)
    assert outcome.status == "interrupted"
    assert outcome.stdout == "x"
    assert time.monotonic() - started < PATIENCE_S


def test_what_a_callback_raises_reaches_the_caller(caller: Caller) -> None:
    if caller.route == ROUTES[1]:
        pytest.skip("callbacks run on this side of the proxy")

    class OfTheCaller(Exception):
        pass

    # A kernel's code is interrupted then: where it ends by itself, the interrupt may come to what runs next.
    rest_s = 60 if caller.route == "jupyter" else 0.05
    for error in (OfTheCaller, BrokenPipeError, EOFError, KeyError):

        def on_output(name: str, text: str, error: type[Exception] = error) -> Any:
            raise error

        with pytest.raises(error):
            caller.run(f"print('x')\nimport time\ntime.sleep({rest_s})", on_output=on_output)
        assert caller.run("print('y')").stdout == "y\n"


def test_waiting_is_not_needed_to_see_a_short_execution(caller: Caller, wait_until: WaitUntil) -> None:
    done: list[ExecutionOutcome] = []
    thread = threading.Thread(target=lambda: done.append(caller.run("1 + 1")))
    if caller.route != ROUTES[1]:
        thread.start()
        wait_until(lambda: done)
        thread.join()
        assert done[0].result == {"text/plain": "2"}
