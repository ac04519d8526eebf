"""The timeline of `SessionProcess`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from json_repl.client import SessionProcess
from json_repl.errors import RequestFailed, SessionClosed, SessionStartFailed


@pytest.fixture
def session(tmp_path: Path) -> Iterator[SessionProcess]:
    with SessionProcess(route="worker", env=os.environ | {"TASK_LOG_DIR": str(tmp_path / "logs")}) as started:
        yield started


@pytest.mark.usefixtures("no_leaks")
def test_a_spawned_session_goes_back_branches_and_tries_out(session: SessionProcess) -> None:
    session.execute_code("x = [1]")
    assert session.snapshot() == {"seq": 1}
    assert not session.execute_code("x.append(2); 1/0", atomic=True)["success"]
    with session.branch(1) as branch:
        assert branch.session_id != session.ready["session_id"]
        assert branch.execute_code("x.append('b'); x")["result"] == {"text/plain": "[1, 'b']"}
        assert [variable["name"] for variable in branch.variables()] == ["x"]
        branch.snapshot()
        with branch.branch(1, reseed=True) as twig:
            assert twig.execute_code("x")["result"] == {"text/plain": "[1, 'b']"}
    assert session.execute_code("x")["result"] == {"text/plain": "[1]"}
    outcomes = session.speculate([f"x.append({n}); x" for n in range(2)], time_limit_s=20, tags={"try": 1})
    assert [outcome["result"]["text/plain"] for outcome in outcomes] == ["[1, 0]", "[1, 1]"]
    session.adopt(1)
    assert session.execute_code("x")["result"] == {"text/plain": "[1, 1]"}
    session.speculate(["x.clear()"])
    session.discard()
    assert session.rewind(1)["seq"] == 1
    assert session.execute_code("x")["result"] == {"text/plain": "[1]"}
    assert 1 in [state["seq"] for state in session.snapshots()]


def test_a_state_that_is_gone_names_the_nearest(session: SessionProcess) -> None:
    session.execute_code("x = 1")
    session.snapshot()
    with pytest.raises(RequestFailed, match="the nearest that is kept is 1") as caught:
        session.rewind(9)
    assert (caught.value.code, caught.value.data) == (-32602, {"seq": 9, "nearest": 1})


def test_a_branch_that_is_closed_says_so_and_its_session_goes_on(session: SessionProcess) -> None:
    session.execute_code("x = 1")
    session.snapshot()
    branch = session.branch(1)
    branch.close()
    branch.close()
    with pytest.raises(SessionClosed):
        branch.execute_code("x")
    assert session.execute_code("x")["success"]
    late = session.branch(1)
    session.close()
    late.close()
    with pytest.raises(SessionClosed):
        late.execute_code("x")


def test_an_interrupt_by_a_callback_reaches_the_branch_that_runs(session: SessionProcess) -> None:
    session.execute_code("import time")
    session.snapshot()
    with session.branch(1) as branch:

        def give_up(_name: str, _text: str) -> None:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            branch.execute_code("print('on', flush=True); time.sleep(60)", on_output=give_up)
        assert [record["status"] for record in branch.history()] == ["interrupted"]


def test_a_spawned_session_can_be_warm(tmp_path: Path) -> None:
    environment = os.environ | {"TASK_LOG_DIR": str(tmp_path / "logs")}
    with SessionProcess(preload=["colorsys", "wave"], env=environment) as session:
        assert session.ready["route"] == "worker"
        outcome = session.execute_code("import sys; 'colorsys' in sys.modules, 'wave' in sys.modules")
        assert outcome["result"] == {"text/plain": "(True, True)"}
    with pytest.raises(SessionStartFailed, match="route='worker'"):
        SessionProcess(preload=["colorsys"], route="local", env=environment)
