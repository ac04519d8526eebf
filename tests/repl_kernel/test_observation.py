"""What messages of a kernel are put together to."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from repl_kernel.capture import open_temporary_spool
from repl_kernel.jupyter.observation import OBSERVED, ObservedExecution
from task_logger.record import ExecutionOutcome

RED = "\x1b[31m"


def observed(*messages: tuple[str, Any], reply: Any = None, **given: Any) -> ExecutionOutcome:
    execution = ObservedExecution(open_temporary_spool)
    for msg_type, content in messages:
        execution.take(msg_type, content)
    if reply is not None:
        execution.replied(reply)
    return execution.outcome(route="jupyter", isolation="external", elapsed_ns=1_500_000, **given)


def stream(text: str, name: str = "stdout") -> tuple[str, dict[str, str]]:
    return "stream", {"name": name, "text": text}


def error(name: str, *traceback: str) -> tuple[str, dict[str, object]]:
    return "error", {"ename": name, "evalue": "why", "traceback": list(traceback)}


def test_streams_are_joined_by_name() -> None:
    outcome = observed(stream("a"), stream("x", "stderr"), stream("b\n"))
    assert (outcome.stdout, outcome.stderr) == ("ab\n", "x")
    assert (outcome.status, outcome.error, outcome.elapsed_ms) == ("ok", None, 1.5)
    assert (outcome.route, outcome.isolation) == ("jupyter", "external")


def test_an_error_is_described_in_plain_text_and_ends_stderr() -> None:
    shown = error("ValueError", f"{RED}ValueError\x1b[39m", "Cell \x1b[32mIn[3], line 2\x1b[39m")
    outcome = observed(stream("before\n", "stderr"), shown, reply={"status": "error", "execution_count": 3})
    assert outcome.error is not None
    assert outcome.error.traceback == "ValueError\nCell In[3], line 2\n"
    assert (outcome.error.type, outcome.error.message, outcome.error.line) == ("ValueError", "why", 2)
    assert outcome.stderr == "before\n" + outcome.error.traceback
    assert outcome.status == "error"


def test_the_line_of_an_error_is_the_last_in_the_cell_itself() -> None:
    traceback = (
        "Cell In[7], line 9",
        "Cell In[3], line 4, in f()",
        "Cell In[7], line 11",
        "Cell In[3], line 5",
    )
    described = observed(error("E", *traceback), reply={"status": "error", "execution_count": 7}).error
    assert described is not None
    assert described.line == 11
    unknown = observed(error("E", *traceback)).error
    assert unknown is not None
    assert unknown.line is None


def test_an_error_that_only_the_reply_tells_is_one() -> None:
    outcome = observed(reply={"status": "error", "ename": "E", "evalue": "v"})
    assert outcome.error is not None
    assert (outcome.status, outcome.error.traceback) == ("error", "E: v\n")


def test_an_error_that_was_printed_already_is_not_printed_again() -> None:
    outcome = observed(stream("E: v\n", "stderr"), reply={"status": "error", "ename": "E", "evalue": "v"})
    assert outcome.stderr == "E: v\n"
    assert outcome.error is not None
    assert outcome.error.traceback == "E: v\n"


def test_a_traceback_that_is_shown_is_output_where_the_execution_went_well() -> None:
    outcome = observed(stream("a\n", "stderr"), error("E", f"{RED}E: of before"), reply={"status": "ok"})
    assert (outcome.status, outcome.error) == ("ok", None)
    assert outcome.stderr == "a\nE: of before\n"


def test_of_several_tracebacks_the_last_is_the_error_and_none_is_lost() -> None:
    outcome = observed(error("A", "A: first"), error("B", "B: last"), reply={"status": "error"})
    assert outcome.error is not None
    assert (outcome.status, outcome.error.type) == ("error", "B")
    assert outcome.stderr == "A: first\nB: last\n"


def test_an_interrupt_is_told_from_an_error() -> None:
    assert observed(error("KeyboardInterrupt")).status == "interrupted"
    assert observed(error("KeyboardInterrupt"), status="error").status == "error"


def test_displays_come_in_their_order_and_the_last_result_is_the_result() -> None:
    outcome = observed(
        ("display_data", {"data": {"text/plain": "1"}}),
        ("execute_result", {"data": {"text/plain": "2"}}),
        ("update_display_data", {"data": {"text/plain": "3"}}),
        ("clear_output", {"wait": True}),
        ("execute_result", {"data": {"text/plain": "4"}}),
    )
    assert outcome.result == {"text/plain": "4"}
    assert [bundle["text/plain"] for bundle in outcome.displays] == ["1", "3", "2"]


def test_who_watches_gets_everything_as_it_comes() -> None:
    said: list[Any] = []
    execution = ObservedExecution(
        open_temporary_spool, lambda name, text: said.append((name, text)), said.append
    )
    execution.take(*stream("a"))
    execution.take("display_data", {"data": {"text/plain": "1"}, "transient": {"display_id": "d"}})
    execution.take("clear_output", {"wait": True})
    assert said == [
        ("stdout", "a"),
        {
            "kind": "display_data",
            "data": {"text/plain": "1"},
            "metadata": {},
            "transient": {"display_id": "d"},
        },
        {"kind": "clear_output", "wait": True},
    ]


def test_other_messages_say_nothing_of_it() -> None:
    outcome = observed(("status", {"execution_state": "busy"}), ("comm_msg", {"data": {}}))
    assert outcome == observed()


def test_much_output_is_in_an_artifact_and_its_ends_in_the_text() -> None:
    outcome = observed(*(stream("x" * 1000 + "\n") for _ in range(5000)))
    (artifact,) = outcome.artifacts
    assert (artifact.field, artifact.bytes) == ("stdout", 5000 * 1001)
    assert len(outcome.stdout) < 200_000
    assert artifact.content is not None
    assert not isinstance(artifact.content, bytes)
    artifact.content.close()


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(st.characters()),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
fields = ("name", "text", "data", "metadata", "transient", "wait", "ename", "evalue", "traceback")
contents = st.fixed_dictionaries({}, optional=dict.fromkeys(fields, anything))


@given(st.lists(st.tuples(st.sampled_from(sorted(OBSERVED)), contents), max_size=6), st.none() | contents)
def test_whatever_a_kernel_sends_becomes_an_outcome(messages: list[tuple[str, Any]], reply: Any) -> None:
    outcome = observed(*messages, reply=reply)
    outcome.stdout.encode()
    outcome.stderr.encode()
    for artifact in outcome.artifacts:
        if artifact.content is not None and not isinstance(artifact.content, bytes):
            artifact.content.close()
