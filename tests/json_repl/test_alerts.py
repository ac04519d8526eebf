"""A session's alerts and events: loud where something fails, never in the way of the work."""

from __future__ import annotations

import gc
import json
import os
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import task_logger
from json_repl import Session
from json_repl.errors import InvalidRequest
from json_repl.session_settings import SessionRoute
from task_logger.alerts import Alert
from task_logger.errors import LogFailed, LogUnavailable
from task_logger.event_view import read_events
from task_logger.reader import Damage
from tests.conftest import WaitUntil
from tests.json_repl.conftest import Server, StartServer
from tests.task_logger.log_check import check_log

ROUTES: tuple[SessionRoute, ...] = ("local", "worker")
NAMES: dict[str, Any] = {"plan_id": "P-1", "task_id": "T-7", "task_name": "bug"}
KILL = "import os; os.kill(os.getpid(), 9)"


@pytest.fixture(params=ROUTES)
def session(request: pytest.FixtureRequest, log_root: Path, no_leaks: None) -> Iterator[Session]:
    with Session(request.param, **NAMES) as session:
        yield session


@pytest.fixture
def worker_session(log_root: Path, no_leaks: None) -> Iterator[Session]:
    with Session("worker", **NAMES) as session:
        yield session


def events_of(log_root: Path, name: str = "7.bug") -> list[dict[str, Any]]:
    path = log_root / "P-1" / "events" / f"{name}.events.jsonl"
    if not path.exists():
        return []
    assert check_log(path).breaks == []
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def named(events: list[dict[str, Any]]) -> list[object]:
    return [event.get("name", event.get("message")) for event in events]


def alerts_in(events: list[dict[str, Any]], source: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == "alert" and event["source"] == source]


def put_a_folder_in_its_place(path: str) -> None:
    os.rename(path, f"{path}.away")
    os.mkdir(path)


def bring_it_back(path: str) -> None:
    os.rmdir(path)
    os.rename(f"{path}.away", path)


# Alerts


def test_a_subscriber_that_can_not_be_called_is_refused_when_it_subscribes(session: Session) -> None:
    nothing: Any = None
    with pytest.raises(InvalidRequest, match="callback must be a function"):
        session.on_alert(nothing)


def test_a_log_that_fails_and_is_well_again_is_told_once_each(session: Session, log_root: Path) -> None:
    told: list[Alert] = []
    session.on_alert(told.append)
    session.execute_code("x = 1")
    put_a_folder_in_its_place(session.log_path)
    failed = [session.execute_code(f"x = {number}") for number in range(3)]
    bring_it_back(session.log_path)
    well = session.execute_code("x = 9")
    assert all(outcome["success"] for outcome in failed)
    assert all("is not in the log" in outcome["notices"][0] for outcome in failed)
    assert [(alert.level, alert.source) for alert in told] == [("error", "log"), ("info", "log")]
    assert told[0].session_id == session.session_id
    assert well["debug_info"]["log"]["n"] == 5
    kept = alerts_in(events_of(log_root), "log")
    assert [event["message"] for event in kept] == [alert.message for alert in told]


def test_with_strict_the_alert_is_critical_and_nothing_runs(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_LOG_STRICT", "1")
    told: list[Alert] = []
    with Session("local", **NAMES) as session:
        session.on_alert(told.append)
        put_a_folder_in_its_place(session.log_path)
        for _ in range(2):
            with pytest.raises((LogUnavailable, LogFailed)):
                session.execute_code("x = 1")
        bring_it_back(session.log_path)
    assert [(alert.level, alert.source) for alert in told] == [("critical", "log")]


def test_a_disk_that_is_full_is_told_and_stops_nothing(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[Alert] = []
    with Session("local", **NAMES, log_dir=small_disk) as session:
        session.on_alert(told.append)
        filler = small_disk / "filler"
        try:
            with filler.open("wb") as file:
                while True:
                    file.write(b"x" * 4096)
                    file.flush()
        except OSError:
            pass
        outcomes = [session.execute_code(f"print('y' * 30_000); x = {number}") for number in range(3)]
        full = [(alert.level, alert.source) for alert in told]
        filler.unlink()
        last = session.execute_code("x")
    assert [outcome["success"] for outcome in outcomes] == [True] * 3
    assert full == [("error", "events"), ("error", "log")]
    assert len([line for line in capfd.readouterr().err.splitlines() if "events are dropped" in line]) == 1
    assert any("events are dropped" in notice for notice in outcomes[0]["notices"])
    assert not any("events are dropped" in notice for notice in outcomes[1]["notices"])
    assert last["debug_info"]["log"]["n"] == 4
    assert [(alert.level, alert.source) for alert in told[2:]] == [("warning", "events"), ("info", "log")]


def test_a_worker_that_dies_is_told_with_what_is_live_now(worker_session: Session, log_root: Path) -> None:
    told: list[Alert] = []
    worker_session.on_alert(told.append)
    worker_session.execute_code("x = 1")
    worker_session.snapshot()
    assert worker_session.execute_code(KILL)["debug_info"]["execution"] == "crashed"
    assert worker_session.execute_code("x")["success"]
    (alert,) = told
    assert (alert.level, alert.source, alert.seq) == ("warning", "worker", 2)
    assert "SIGKILL" in alert.message
    assert "the state after execution 1 is live" in alert.message
    (kept,) = alerts_in(events_of(log_root), "worker")
    assert (kept["message"], kept["seq"]) == (alert.message, 2)


def test_a_worker_that_dies_between_two_executions_is_told_when_that_is_seen(
    worker_session: Session, wait_until: WaitUntil
) -> None:
    told: list[Alert] = []
    worker_session.on_alert(told.append)
    worker_session.execute_code("import os, threading, signal")
    worker_session.execute_code("threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGKILL)).start()")
    wait_until(lambda: worker_session.execute_code("1") and told)
    (alert,) = told
    assert alert.source == "worker"


def test_a_branch_tells_its_own(worker_session: Session) -> None:
    worker_session.execute_code("x = 1")
    told: list[Alert] = []
    told_branch: list[Alert] = []
    worker_session.on_alert(told.append)
    with worker_session.branch(1) as branch:
        branch.on_alert(told_branch.append)
        branch.execute_code(KILL)
    assert [alert.source for alert in told_branch] == ["worker"]
    assert told == []


def test_subscribers_that_raise_or_use_the_session_break_nothing(
    session: Session, log_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[Alert] = []
    session.on_alert(lambda alert: 1 / 0)
    session.on_alert(lambda alert: session.execute_code("in_a_callback = 1"))
    session.on_alert(told.append)
    put_a_folder_in_its_place(session.log_path)
    outcome = session.execute_code("x = 1")
    bring_it_back(session.log_path)
    assert outcome["success"]
    assert outcome["stderr"] == ""
    assert [alert.source for alert in told] == ["log"]
    complaints = capfd.readouterr().err
    assert "a subscriber of alerts raised ZeroDivisionError" in complaints
    assert "a subscriber of alerts raised InvalidRequest" in complaints
    assert session.execute_code("'in_a_callback' in globals()")["result"] == {"text/plain": "False"}


def test_a_subscriber_that_alerts_itself_is_told_once(log_root: Path) -> None:
    told: list[Alert] = []

    def again(alert: Alert) -> None:
        told.append(alert)
        task_logger.alert("info", "heard", source="subscriber")

    with Session("local", **NAMES) as session, task_logger.task_context(**NAMES):
        session.on_alert(again)
        task_logger.alert("warning", "first", source="agent")
    assert [alert.message for alert in told] == ["first"]
    assert [event["message"] for event in events_of(log_root)] == ["first", "heard"]


def test_a_subscription_ends_where_its_caller_ends_it(session: Session) -> None:
    told: list[Alert] = []
    first, second = session.on_alert(told.append), session.on_alert(told.append)
    first()
    first()
    with task_logger.task_context(**NAMES):
        task_logger.alert("info", "one subscriber", source="agent")
        second()
        task_logger.alert("info", "none", source="agent")
    assert [alert.message for alert in told] == ["one subscriber"]


# Events


def test_what_executed_code_writes_is_an_event_of_the_sessions_task(session: Session, log_root: Path) -> None:
    request_code = "task_logger.llm_request('m', correlation_id='c')"
    code = f"import task_logger\nprint(task_logger.event('rows.read', 3), {request_code})"
    assert session.execute_code(code, tags={"step": "4"})["stdout"] == "True c\n"
    rows, request = (event for event in events_of(log_root) if event.get("name") != "isolation.probe")
    assert (rows["plan_id"], rows["task_id"], rows["task_name"]) == ("P-1", "T-7", "bug")
    assert (rows["name"], rows["value"], request["correlation_id"]) == ("rows.read", 3, "c")
    if session.route == "local":
        assert (rows["session_id"], rows["seq"], rows["tags"]) == (session.session_id, 1, {"step": "4"})


def test_events_of_a_session_with_a_folder_of_its_own_are_in_that_folder(
    log_root: Path, tmp_path: Path
) -> None:
    for route in ROUTES:
        with Session(route, **NAMES, log_dir=tmp_path / "own") as session, task_logger.task_context(**NAMES):
            task_logger.event("from the host")
            assert session.execute_code("import task_logger; task_logger.event('from the code')")["success"]
    names = named(events_of(tmp_path / "own"))
    assert [name for name in names if name != "isolation.probe"] == ["from the host", "from the code"] * 2
    assert events_of(log_root) == []


def test_task_context_takes_events_to_another_task_as_it_does_executions(
    session: Session, log_root: Path
) -> None:
    with task_logger.task_context(task_id="T-8", agent="coder"):
        session.execute_code("import task_logger; task_logger.event('inside')")
    session.execute_code("task_logger.event('after')")
    (inside,) = (event for event in events_of(log_root, "8.bug"))
    assert inside["name"] == "inside"
    if session.route == "local":
        assert inside["tags"] == {"agent": "coder"}
    assert "after" in named(events_of(log_root))


def test_events_go_on_after_the_state_of_a_snapshot_has_come_back(
    worker_session: Session, log_root: Path
) -> None:
    worker_session.execute_code("import task_logger; task_logger.event('before')")
    worker_session.snapshot()
    assert worker_session.snapshots()[-1]["descriptors"] == []  # each copy opens the file anew
    worker_session.execute_code(KILL)
    assert worker_session.execute_code("print(task_logger.event('after'))")["stdout"] == "True\n"
    worker_session.rewind(1)
    assert worker_session.execute_code("print(task_logger.event('rewound'))")["stdout"] == "True\n"
    names = named(events_of(log_root))
    assert (names[0], names[1], names[-2:]) == ("isolation.probe", "before", ["after", "rewound"])


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
def test_in_a_sandbox_an_event_is_dropped_and_the_code_is_told(log_root: Path) -> None:
    with Session("worker", **NAMES, isolation="sandbox") as session:
        code = "import task_logger; print([task_logger.event('x') for _ in range(3)])"
        outcome = session.execute_code(code)
    assert outcome["stdout"] == "[False, False, False]\n"
    assert outcome["stderr"].count("events are dropped") == 1
    assert "can't leave the sandbox" in outcome["stderr"]
    (probe,) = events_of(log_root)
    assert (probe["name"], probe["dimensions"]["isolation"]) == ("isolation.probe", "sandbox")


def test_the_proof_of_isolation_is_an_event(worker_session: Session, log_root: Path) -> None:
    (probe,) = events_of(log_root)
    attempts = len(worker_session.isolation_probe)
    assert probe["name"] == "isolation.probe"
    assert probe["value"] == attempts
    assert probe["dimensions"] == {"isolation": "process", "attempts": attempts, "not_denied": []}
    assert probe["session_id"] == worker_session.session_id


def test_dropped_events_are_in_the_next_reply_and_counted_when_it_is_over(
    log_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    told: list[Alert] = []
    folder = log_root / "P-1" / "events"
    with Session("local", **NAMES) as session, task_logger.task_context(**NAMES):
        session.on_alert(told.append)
        folder.write_text("a file where the folder should be")
        assert [task_logger.event("lost") for _ in range(4)] == [False] * 4
        first, second = session.execute_code("x = 1"), session.execute_code("x = 2")
        folder.unlink()
        assert task_logger.event("kept")
    assert ["events are dropped" in notice for notice in first["notices"]] == [True]
    assert second["notices"] == []
    assert [alert.level for alert in told] == ["error", "warning"]
    assert len(capfd.readouterr().err.splitlines()) == 1
    assert named(events_of(log_root)) == ["kept", "events are written again; 4 before the last were dropped"]


def test_a_reply_on_stdio_says_that_events_are_dropped(start_server: StartServer, tmp_path: Path) -> None:
    plan = tmp_path / "logs" / "local"
    plan.mkdir(parents=True, mode=0o700)
    (plan / "events").write_text("a file where the folder should be")
    server: Server = start_server("worker")
    notices = server.ask("execute", code="1 + 1")["notices"]
    assert any("events are dropped" in notice for notice in notices)


def test_a_closed_session_takes_no_events_and_an_unused_one_ends(log_root: Path, tmp_path: Path) -> None:
    session = Session("local", **NAMES, log_dir=tmp_path / "own")
    session.close()
    with task_logger.task_context(**NAMES):
        assert task_logger.event("after the session")
    assert named(events_of(log_root)) == ["after the session"]
    unused = Session("worker", **NAMES)
    unused.on_alert(lambda alert: None)
    gone = weakref.ref(unused)
    del unused
    gc.collect()
    assert gone() is None


def test_code_on_a_worker_writes_no_events_of_an_encrypted_plan(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("cryptography", reason="encryption needs the extra `crypto`")
    monkeypatch.setenv("TASK_LOG_KEY", "a passphrase")
    with Session("worker", **NAMES) as session, task_logger.task_context(**NAMES):
        assert task_logger.event("from the host")
        outcome = session.execute_code("import task_logger; print(task_logger.event('from the worker'))")
    assert outcome["stdout"] == "False\n"
    assert "TASK_LOG_KEY" in outcome["stderr"]
    data = (log_root / "P-1" / "events" / "7.bug.events.jsonl").read_bytes()
    assert b"from the" not in data
    found = [event for event in read_events(session.log_path) if not isinstance(event, Damage)]
    assert named(found) == ["isolation.probe", "from the host"]


def test_secrets_of_a_session_are_kept_out_of_its_events(session: Session, log_root: Path) -> None:
    session.redact("door", "open sesame 1234")
    with task_logger.task_context(**NAMES):
        assert task_logger.event("said", "open sesame 1234")
    (event,) = (event for event in events_of(log_root) if event.get("name") == "said")
    assert "sesame" not in json.dumps(event)
    assert "door" in event["value"]
