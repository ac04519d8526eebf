"""The timeline on stdio: states gone back to, branched from and tried out, as clients meet it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Start = Callable[..., Any]

TIMELINE_METHODS: list[tuple[str, dict[str, object]]] = [
    ("snapshots", {}),
    ("snapshot", {}),
    ("rewind", {"seq": 1}),
    ("branch", {"seq": 1}),
    ("speculate", {"codes": ["x"]}),
    ("adopt", {"index": 0}),
    ("discard", {}),
]


def result_of(server: Any, code: str, **params: object) -> Any:
    outcome = server.ask("execute", code=code, **params)
    assert outcome["success"], outcome
    return outcome["result"] and outcome["result"]["text/plain"]


def error_of(server: Any, method: str, **params: object) -> dict[str, Any]:
    server.send(method, "wrong", **params)
    reply = server.read()
    assert reply["id"] == "wrong"
    error: dict[str, Any] = reply["error"]
    return error


def test_a_state_is_kept_listed_and_gone_back_to(start_server: Start) -> None:
    server = start_server("worker")
    result_of(server, "x = [1]")
    assert server.ask("snapshot") == {"seq": 1}
    result_of(server, "x.append(2); g = (n for n in x)")
    assert server.ask("snapshot") == {"seq": 2}
    kept = server.ask("snapshots")
    assert [state["seq"] for state in kept] == [1, 2]
    assert all(state["age_s"] >= 0 for state in kept)
    assert server.ask("rewind", seq=1)["seq"] == 1
    assert result_of(server, "x") == "[1]"
    assert server.ask("rewind", seq=2)["seq"] == 2
    assert result_of(server, "next(g), x") == "(1, [1, 2])"
    assert [line["parent"] for line in server.log_lines()[2:]] == [
        f"{server.ready['session_id']}:{seq}" for seq in (1, 2)
    ]


def test_a_state_that_is_not_kept_is_refused_with_the_nearest_that_is(start_server: Start) -> None:
    server = start_server("worker", command=("-m", "json_repl"))
    result_of(server, "x = 1")
    server.ask("snapshot")
    error = error_of(server, "rewind", seq=7)
    assert (error["code"], error["data"]) == (-32602, {"seq": 7, "nearest": 1})
    assert "is not kept; the nearest that is kept is 1" in error["message"]
    assert error_of(server, "branch", seq=7)["data"] == {"seq": 7, "nearest": 1}
    assert error_of(server, "rewind", seq=10**30)["code"] == -32602  # no reply could name it
    assert result_of(server, "x") == "1"


def test_a_branch_is_a_session_of_its_own_in_the_same_process(start_server: Start) -> None:
    server = start_server("worker")
    result_of(server, "import random; random.seed(1); x = [1]")
    server.ask("snapshot")
    branch = server.ask("branch", seq=1)
    other = branch["session_id"]
    assert other != server.ready["session_id"]
    assert (branch["route"], branch["log"]) == ("worker", server.ready["log"])
    result_of(server, "x.append('first')")
    assert result_of(server, "x.append('branch'); x", session_id=other) == "[1, 'branch']"
    assert result_of(server, "x") == "[1, 'first']"
    same = result_of(server, "random.random()", session_id=other)
    assert result_of(server, "random.random()", session_id=server.ready["session_id"]) == same
    renewed = server.ask("branch", seq=1, reseed=True)["session_id"]
    assert result_of(server, "random.random()", session_id=renewed) != same
    assert [record["seq"] for record in server.ask("history", session_id=other)] == [1, 2]
    assert server.ask("history", session_id=other)[0]["parent"] == f"{server.ready['session_id']}:1"
    assert [variable["name"] for variable in server.ask("variables", session_id=other)] == ["random", "x"]
    assert server.ask("restart", session_id=other) == {}
    assert server.ask("variables", session_id=other) == []
    assert server.ask("shutdown", session_id=other) == {}
    error = error_of(server, "execute", code="x", session_id=other)
    assert (error["code"], other in error["message"]) == (-32602, True)
    assert result_of(server, "x") == "[1, 'first']"
    server.close_input()
    assert server.wait() == 0


def test_the_end_of_input_ends_all_branches(start_server: Start) -> None:
    server = start_server("worker")
    pids = [int(result_of(server, "import os; os.getpid()"))]
    server.ask("snapshot")
    for _ in range(2):
        branch = server.ask("branch", seq=1)["session_id"]
        pids.append(int(result_of(server, "os.getpid()", session_id=branch)))
    assert len(set(pids)) == 3
    assert server.ask("shutdown") == {}
    assert (server.wait(), server.stderr()) == (0, "")
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            __import__("os").kill(pid, 0)


def test_an_atomic_execution_that_fails_leaves_the_namespace_as_it_was(start_server: Start) -> None:
    server = start_server("worker")
    result_of(server, "x = [1]")
    outcome = server.ask("execute", code="x.append(2); y = 1; 1/0", atomic=True)
    assert outcome["error"]["type"] == "ZeroDivisionError"
    assert result_of(server, "x, 'y' in globals()") == "([1], False)"
    assert result_of(server, "x.append(3); x", atomic=True) == "[1, 3]"
    assert [line.get("rolled_back", False) for line in server.log_lines()] == [False, True, False, False]


def test_candidates_run_at_once_and_one_is_adopted(start_server: Start) -> None:
    server = start_server("worker")
    result_of(server, "x = [0]")
    codes = [f"x.append({number}); x" for number in range(3)]
    outcomes = server.ask("speculate", codes=[*codes, "1/0"], tags={"try": 1}, time_limit_s=20)
    assert [outcome["result"] and outcome["result"]["text/plain"] for outcome in outcomes] == [
        "[0, 0]",
        "[0, 1]",
        "[0, 2]",
        None,
    ]
    assert [outcome["debug_info"]["seq"] for outcome in outcomes] == [2, 3, 4, 5]
    assert result_of(server, "x") == "[0]"
    server.ask("speculate", codes=codes)
    assert server.ask("adopt", index=2) == {}
    assert result_of(server, "x") == "[0, 2]"
    server.ask("speculate", codes=codes)
    assert server.ask("discard") == {}
    error = error_of(server, "adopt", index=0)
    assert (error["code"], "no candidate 0" in error["message"]) == (-32603, True)
    assert result_of(server, "x") == "[0, 2]"
    lines = server.log_lines()
    assert [line["tags"] for line in lines[1:5]] == [{"try": 1}] * 4
    assert len({line["parent"] for line in lines[1:5]}) == 1


def test_candidates_are_interrupted_together(start_server: Start) -> None:
    server = start_server("worker")
    server.send("speculate", 1, codes=["import time; time.sleep(60)"] * 2)
    statuses: list[str] = []
    number = 1
    while not statuses:  # an interrupt that comes before they run finds nothing to interrupt
        number += 1
        server.send("interrupt", number)
        reply = server.read()
        if reply["id"] == 1:
            statuses = [outcome["debug_info"]["execution"] for outcome in reply["result"]]
    assert statuses == ["interrupted", "interrupted"]


def test_a_signal_to_end_interrupts_candidates_and_each_has_its_line(
    start_server: Start, tmp_path: Path, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    server = start_server("worker")
    result_of(server, "x = 1")
    marks = [tmp_path / name for name in "ab"]
    codes = [f"import time; open({str(mark)!r}, 'w').close(); time.sleep(60)" for mark in marks]
    server.send("speculate", 1, codes=codes)
    wait_until(lambda: all(mark.exists() for mark in marks))
    server.process.terminate()
    assert server.wait() == 0
    assert [line["status"] for line in server.log_lines()] == ["ok", "interrupted", "interrupted"]


@pytest.mark.parametrize(("method", "params"), TIMELINE_METHODS[1:])
def test_what_is_about_the_live_state_is_refused_while_code_runs(
    start_server: Start, method: str, params: dict[str, object]
) -> None:
    server = start_server("worker")
    server.send("execute", 1, code="print('on', end='')\nimport time\ntime.sleep(60)", stream=True)
    assert server.read()["params"]["text"] == "on"  # in one write: no other piece comes before the reply
    error = error_of(server, method, **params)
    assert (error["code"], method in error["message"]) == (-32000, True)
    server.send("interrupt", 2)
    replies = {reply["id"]: reply for reply in server.read_reply_of(1, 2)}
    assert replies[1]["result"]["debug_info"]["execution"] == "interrupted"
    assert result_of(server, "1 + 1") == "2"


@pytest.mark.parametrize(("method", "params"), TIMELINE_METHODS)
def test_the_local_route_says_which_route_it_takes(
    start_server: Start, method: str, params: dict[str, object]
) -> None:
    server = start_server("local")
    error = error_of(server, method, **params)
    assert error["code"] == -32603
    assert method in error["message"]
    assert "route='worker'" in error["message"]


def test_atomic_on_the_local_route_is_a_wrong_param(start_server: Start) -> None:
    server = start_server("local")
    error = error_of(server, "execute", code="x = 1", atomic=True)
    assert (error["code"], "route='worker'" in error["message"]) == (-32602, True)
    assert server.log_lines() == []


def test_a_state_that_can_not_be_copied_is_refused_with_the_reason(start_server: Start) -> None:
    server = start_server("worker")
    result_of(
        server,
        "import threading; e = threading.Event(); threading.Thread(target=e.wait, name='mine').start()",
    )
    for method, params in (("snapshot", {}), ("speculate", {"codes": ["1"]})):
        error = error_of(server, method, **params)
        assert (error["code"], "mine" in error["message"]) == (-32603, True)
        assert error["message"].startswith("SnapshotRefused: ")
    result_of(server, "e.set()")


def test_no_session_is_a_wrong_param(start_server: Start) -> None:
    server = start_server("worker")
    for method, params in (("execute", {"code": "1"}), ("interrupt", {}), ("rewind", {"seq": 0})):
        error = error_of(server, method, session_id="nobody", **params)
        assert (error["code"], "'nobody'" in error["message"]) == (-32602, True)
