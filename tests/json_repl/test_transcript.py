"""A history as messages: what stays whole, what becomes a handle, and which events tell of it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from json_repl import Session
from json_repl.errors import InvalidRequest
from json_repl.transcript import project
from task_logger.event_view import read_events
from task_logger.reader import Damage, read_records
from task_logger.record import ExecutionRecord

HEAVY = "print('first line'); print('x' * 4000)"
HEAVY_TOKENS = 1003  # (10 + 1 + 4000) / 4, rounded up


@pytest.fixture
def session(log_root: Path, no_leaks: None) -> Iterator[Session]:
    with Session("local") as session:
        yield session


def run(session: Session, *codes: str) -> list[ExecutionRecord]:
    return [session.execute(code) for code in codes]


def events_of(session: Session) -> list[dict[str, Any]]:
    found = list(read_events(session.log_path))
    assert not any(isinstance(each, Damage) for each in found)
    return [each for each in found if isinstance(each, dict) and each["name"].startswith("prune.")]


def test_code_is_the_assistants_and_what_came_of_it_the_tools(session: Session) -> None:
    run(session, "print('hi')\n40 + 2", "x = 1", "1 / 0")
    messages = project(list(read_records(session.log_path))).messages
    assert messages[:4] == [
        {"role": "assistant", "content": "print('hi')\n40 + 2"},
        {"role": "tool", "content": "hi\n42"},
        {"role": "assistant", "content": "x = 1"},
        {"role": "tool", "content": "[no output]"},
    ]
    assert messages[4] == {"role": "assistant", "content": "1 / 0"}
    assert messages[5]["content"].endswith("ZeroDivisionError: division by zero")


@pytest.mark.parametrize(
    ("records", "settings", "named"),
    [
        ([{"code": "1"}], {}, "records"),
        ("a.jsonl", {}, "records"),
        ([], {"protected_tokens": "all"}, "protected_tokens"),
        ([], {"min_savings": None}, "min_savings"),
        ([], {"min_savings": float("nan")}, "min_savings"),
        ([], {"count_tokens": 4}, "count_tokens"),
    ],
)
def test_what_is_no_history_or_budget_is_named(records: Any, settings: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidRequest, match=named):
        project(records, **settings)


def test_what_was_displayed_is_in_the_messages() -> None:
    with Session("worker", shell="ipython") as session:
        shown = "display('a text')\ndisplay({'image/png': 'iVBORw=='}, raw=True)"
        messages = project(run(session, f"from IPython.display import display\n{shown}")).messages
    assert messages[1] == {"role": "tool", "content": "'a text'\n[image/png]"}


def test_without_candidates_all_stays_and_the_event_says_so(session: Session) -> None:
    records = run(session, "1", "print('short')", HEAVY)
    projection = project(records, protected_tokens=2000, min_savings=1)
    assert projection.skip_reason == "no_candidates"
    assert len(projection.messages) == 6
    (skip,) = events_of(session)
    assert (skip["name"], skip["dimensions"]["reason"]) == ("prune.skip", "no_candidates")
    assert skip["dimensions"]["candidate_count"] == 0


def test_below_the_least_savings_all_stays_and_the_event_says_so(session: Session) -> None:
    projection = project(run(session, HEAVY, "2"), protected_tokens=10, min_savings=HEAVY_TOKENS)
    assert projection.skip_reason == "below_min_savings"
    assert projection.messages[1]["content"] == "first line\n" + "x" * 4000
    (skip,) = events_of(session)
    assert (skip["name"], skip["dimensions"]["reason"]) == ("prune.skip", "below_min_savings")
    assert 0 < skip["dimensions"]["estimated_savings"] < skip["dimensions"]["min_savings"] == HEAVY_TOKENS


def test_a_fired_prune_leaves_handles_and_its_usage_is_joined_to_it(session: Session) -> None:
    records = run(session, HEAVY, "1", HEAVY, "print('new')")
    projection = project(records, protected_tokens=20, min_savings=1000)
    handle = projection.messages[1]["content"]
    assert handle == (
        f"[{session.log_path}#1: about {HEAVY_TOKENS} tokens left out, which begin: first line]"
    )
    assert [message["content"] for message in projection.messages[2:4]] == ["1", "1"]
    assert projection.messages[5]["content"].startswith(f"[{session.log_path}#3: ")
    assert projection.messages[6:] == project(records, protected_tokens=20, min_savings=10**9).messages[6:]
    assert projection.report_usage(input_tokens=321)
    fire, _, usage = events_of(session)
    assert fire["name"] == "prune.fire"
    assert fire["dimensions"] == {
        "candidate_count": 2,
        "protected_start": 6,
        "estimated_savings": 2 * (HEAVY_TOKENS - -(-len(handle) // 4)),
    }
    assert (usage["name"], usage["dimensions"]) == ("prune.post_request", {"input_tokens": 321})
    assert usage["correlation_id"] == fire["correlation_id"] == projection.correlation_id


def test_what_is_named_in_a_handle_is_at_that_line_of_the_log(session: Session) -> None:
    run(session, "1", HEAVY, "2")
    projection = project(list(read_records(session.log_path)), protected_tokens=0, min_savings=1)
    path, _, rest = projection.messages[3]["content"].removeprefix("[").partition("#")
    record = list(read_records(path))[int(rest.partition(":")[0]) - 1]
    assert isinstance(record, ExecutionRecord)
    assert record.request.code == HEAVY


@pytest.mark.parametrize("failure", ["no folder", "no ids"])
def test_events_that_cant_be_written_leave_the_run_unharmed(
    failure: str, session: Session, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    records = run(session, HEAVY, "1")
    expected = project(records, protected_tokens=2, min_savings=1)
    if failure == "no folder":
        monkeypatch.setenv("FLOW_TASK_ID", "T-9")  # of no session: it is written where the environment says
        monkeypatch.setenv("TASK_LOG_DIR", "/dev/null/logs")
    else:
        monkeypatch.setattr(os, "environ", {"FLOW_PLAN_ID": 7})  # no text, as no program can be started with
    projection = project(records, protected_tokens=2, min_savings=1)
    assert projection.messages == expected.messages
    assert not projection.report_usage(input_tokens=1)
    assert capsys.readouterr().err


def test_the_newest_that_alone_exceed_the_budget_are_not_protected(session: Session) -> None:
    projection = project(run(session, HEAVY), protected_tokens=100, min_savings=1)
    assert projection.protected_start == 2
    assert "left out" in projection.messages[1]["content"]


def test_tokens_are_counted_by_the_caller_where_they_say_how(session: Session) -> None:
    records = run(session, HEAVY, "1")
    projection = project(records, protected_tokens=2, min_savings=1, count_tokens=len)
    assert "about 4011 tokens left out" in projection.messages[1]["content"]


def test_a_damaged_piece_of_the_log_is_named_among_the_messages(session: Session) -> None:
    run(session, "1")
    records = [*read_records(session.log_path)]
    damage = Damage(kind="unreadable", path="some.jsonl", at=12, bytes=3, reason="it is no line")
    messages = project([damage, *records]).messages
    assert messages[0] == {
        "role": "user",
        "content": "[3 bytes at 12 of some.jsonl can't be read: it is no line]",
    }
