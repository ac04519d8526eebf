"""The timeline of a session, and what its log says of it: every execution one line, and where each began."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from json_repl.errors import InvalidRequest, SessionClosed
from json_repl.session import Session
from repl_kernel.errors import SnapshotGone, SnapshotRefused
from task_logger.errors import ConfigurationError

PATIENCE_S = 20.0


@pytest.fixture
def session(log_root: Path, no_leaks: None) -> Iterator[Session]:
    made = Session("worker", task_id="T-1")
    yield made
    made.close()


def lines_of(session: Session) -> list[dict[str, Any]]:
    with open(session.log_path, encoding="utf-8") as file:
        return [json.loads(line) for line in file]


def keep(session: Session, code: str) -> int:
    """Run code that must succeed, and let the worker idle until its state is kept."""
    outcome = session.execute_code(code)
    assert outcome["success"], outcome
    seq = int(outcome["debug_info"]["seq"])
    deadline = time.monotonic() + PATIENCE_S
    while all(one["seq"] != seq for one in session.snapshots()):
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return seq


def value(session: Session, code: str) -> object:
    outcome = session.execute_code(code)
    assert outcome["success"], outcome
    return outcome["result"]["text/plain"]


def test_the_log_names_the_state_that_each_execution_began_with(session: Session) -> None:
    keep(session, "x = 1")
    keep(session, "x = 2")
    session.rewind(1)
    keep(session, "x += 10")
    branch = session.branch(3)
    value(branch, "x")
    session.speculate(["x + 1", "x + 2"])
    session.adopt(0)
    assert value(session, "x") == "11"
    session.execute_code("y = 5; 1 / 0", atomic=True)
    value(session, "x")
    lines = [line for line in lines_of(session) if line["session_id"] == session.session_id]
    here = session.session_id
    assert [line["seq"] for line in lines] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert [line.get("parent") for line in lines] == [
        None, None, f"{here}:1", f"{here}:3", f"{here}:3", f"{here}:4", None, f"{here}:6",
    ]  # fmt: skip
    assert [line["seq"] for line in lines if line.get("rolled_back")] == [7]
    assert lines[0]["snapshot"] == f"{here}:1"
    (of_branch,) = [line for line in lines_of(branch) if line["session_id"] == branch.session_id]
    assert (of_branch["seq"], of_branch["parent"]) == (1, f"{here}:3")
    branch.close()


def test_an_atomic_execution_that_no_snapshot_can_guard_does_not_run_and_has_one_line(
    session: Session,
) -> None:
    session.execute_code(
        "import threading; e = threading.Event(); threading.Thread(target=e.wait).start(); x = 1"
    )
    outcome = session.execute_code("x = 2", atomic=True)
    assert outcome["error"]["type"] == "SnapshotRefused"
    assert "a thread is running" in outcome["error"]["message"]
    assert value(session, "x") == "1"
    lines = lines_of(session)
    assert [(line["seq"], line["success"]) for line in lines] == [(1, True), (2, False), (3, True)]
    assert lines[2]["parent"] == f"{session.session_id}:1"
    session.execute_code("e.set()")


def test_candidates_that_cannot_run_have_a_line_each(session: Session) -> None:
    session.execute_code("import threading; e = threading.Event(); threading.Thread(target=e.wait).start()")
    with pytest.raises(SnapshotRefused, match="a thread is running"):
        session.speculate(["1", "2"])
    session.execute_code("e.set()")
    assert [line["seq"] for line in lines_of(session)] == [1, 2, 3, 4]
    assert [line["error"]["type"] for line in lines_of(session)[1:3]] == ["SnapshotRefused"] * 2


def test_a_program_that_ends_with_branches_open_ends_without_a_word(log_root: Path, no_leaks: None) -> None:
    code = (
        "from json_repl import Session\n"
        "session = Session('worker')\nsession.execute_code('x = 1')\nbranch = session.branch(1)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stderr == ""


def test_a_fork_of_the_host_can_not_go_back_in_its_session(session: Session) -> None:
    keep(session, "x = 1")
    if not (pid := os.fork()):
        refused = 0
        for ask in (lambda: session.rewind(1), lambda: session.speculate(["x"]), session.snapshots):
            with contextlib.suppress(SessionClosed):
                ask()
                continue
            refused += 1
        os._exit(refused)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 3
    assert value(session, "x") == "1"


def test_a_branch_that_can_not_begin_leaves_nothing_behind(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    keep(session, "x = 1")
    monkeypatch.setenv("TASK_LOG_FSYNC", "sometimes")
    with pytest.raises(ConfigurationError, match="TASK_LOG_FSYNC"):
        session.branch(1)
    with pytest.raises(InvalidRequest, match="reseed must be true or false"):
        session.branch(1, reseed=object())  # type: ignore[arg-type]
    assert value(session, "x") == "1"


def test_what_the_local_route_cannot_do_names_the_one_that_can(log_root: Path) -> None:
    with Session("local", task_id="T-1") as session:
        for call in (lambda: session.rewind(1), lambda: session.branch(1), lambda: session.speculate(["1"])):
            with pytest.raises(InvalidRequest, match="worker"):
                call()
        with pytest.raises(InvalidRequest, match="worker"):
            session.execute_code("1", atomic=True)


def test_a_state_that_is_not_kept_is_refused_by_name(session: Session) -> None:
    keep(session, "x = 1")
    with pytest.raises(SnapshotGone, match="the nearest that is kept is 1"):
        session.rewind(17)
    with pytest.raises(InvalidRequest):
        session.rewind(-1)


_KILLED = """
import os, sys, threading
from json_repl.session import Session
session = Session("worker", task_id="T-1")
session.execute_code("import time")
print(session.log_path, flush=True)
session.speculate([f"open({sys.argv[1]!r} + '/{n}', 'w').close(); time.sleep(1000)" for n in range(3)])
"""


def test_a_session_killed_while_candidates_run_leaves_a_line_of_each(log_root: Path, tmp_path: Path) -> None:
    folder = tmp_path / "begun"
    folder.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", _KILLED, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    path = process.stdout.readline().strip()
    deadline = time.monotonic() + PATIENCE_S
    while len(os.listdir(folder)) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    with Session("local", task_id="T-1") as later:
        value(later, "1")
    with open(path, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    assert [(line["seq"], line["status"]) for line in lines[:4]] == [
        (1, "ok"), (2, "unknown"), (3, "unknown"), (4, "unknown"),
    ]  # fmt: skip
    assert len(lines) == 5


def test_lines_of_candidates_are_kept_where_the_log_cannot_be_written_and_none_is_doubled(
    session: Session,
) -> None:
    keep(session, "x = 1")
    aside = session.log_path + ".aside"
    os.rename(session.log_path, aside)
    os.mkdir(session.log_path)
    outcomes = session.speculate(["x + 1", "x + 2"])
    assert any("is not in the log" in notice for notice in outcomes[0]["notices"])
    os.rmdir(session.log_path)
    os.rename(aside, session.log_path)
    deadline = time.monotonic() + PATIENCE_S
    value(session, "x")
    while len(lines_of(session)) < 4:
        assert time.monotonic() < deadline
        value(session, "x")
    seqs = [line["seq"] for line in lines_of(session)]
    assert sorted(seqs) == list(range(1, len(seqs) + 1))
    assert [line["status"] for line in lines_of(session)] == ["ok"] * len(seqs)


def test_the_callers_ctrl_c_while_a_state_is_kept_is_raised_on(log_root: Path, no_leaks: None) -> None:
    with Session("worker", snapshots="manual") as session:
        hook = f"lambda: os.kill({os.getpid()}, signal.SIGINT)"
        value(session, f"import os, signal; os.register_at_fork(before={hook}); 1")
        with pytest.raises(KeyboardInterrupt):
            session.snapshot()
        assert [kept["seq"] for kept in session.snapshots()] == [1]
        value(session, "2")
        with pytest.raises(KeyboardInterrupt):
            session.execute_code("3", atomic=True)
        assert value(session, "4") == "4"
        assert [line["status"] for line in lines_of(session)] == ["ok", "ok", "interrupted", "ok"]


def test_what_would_pull_the_worker_away_from_a_running_execution_is_refused_in_its_callbacks(
    session: Session,
) -> None:
    keep(session, "x = 1")
    calls: dict[str, Any] = {
        "rewind": lambda: session.rewind(0),
        "branch": lambda: session.branch(1),
        "speculate": lambda: session.speculate(["x"]),
        "adopt": lambda: session.adopt(0),
        **{name: getattr(session, name) for name in ("restart", "variables", "snapshot", "discard")},
    }
    refused: list[str] = []

    def on_output(_name: str, _text: str) -> None:
        for name in list(calls):
            with pytest.raises(InvalidRequest, match=f"{name} was called from within an execution"):
                calls.pop(name)()
            refused.append(name)

    assert session.execute_code("print('x'); x += 1", on_output=on_output)["success"]
    assert (len(refused), value(session, "x")) == (8, "2")
    with pytest.raises(InvalidRequest, match="close was called from within"):
        session.execute_code("print('x')", on_output=lambda *_: session.close())
    value(session, "1")
    assert len(lines_of(session)) == 5


def test_candidates_limits_and_choices_that_cannot_be_meant_are_named(session: Session) -> None:
    odd_codes: list[Any] = [5, "x", [], ["x", 5], (code for code in "x")]
    for codes in odd_codes:
        with pytest.raises(InvalidRequest, match="codes must be a list of at least one text"):
            session.speculate(codes)
    odd_limits: list[Any] = ["1", 0, -1, float("nan"), True]
    for limit in odd_limits:
        with pytest.raises(InvalidRequest, match="time_limit_s must be a number of seconds"):
            session.speculate(["1"], time_limit_s=limit)
    odd_choices: list[Any] = [None, "0", 0.5, True]
    for index in odd_choices:
        with pytest.raises(InvalidRequest, match="index must be the number of a candidate"):
            session.adopt(index)
    assert session.last_seq == 0
