"""`SessionProcess`: what a program that spawns a session can rely on."""

from __future__ import annotations

import _thread
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

import pytest

from json_repl.client import SessionProcess
from json_repl.errors import (
    InvalidRequest,
    ReplyTimeout,
    RequestFailed,
    SessionClosed,
    SessionProcessDied,
    SessionStartFailed,
)
from task_logger.errors import ConfigurationError
from tests.json_repl.conftest import in_time

both_routes = pytest.mark.parametrize("route", ["local", "worker"])

SessionRoute = Literal["local", "worker"]


@pytest.fixture
def env(tmp_path: Path) -> Mapping[str, str]:
    return os.environ | {"TASK_LOG_DIR": str(tmp_path / "logs")}


@pytest.fixture
def session(env: Mapping[str, str]) -> Iterator[SessionProcess]:
    with SessionProcess(route="local", env=env) as started:
        yield started


@both_routes
def test_a_spawned_session_does_all_that_a_session_does(env: Mapping[str, str], route: SessionRoute) -> None:
    with SessionProcess(route=route, env=env) as session:
        assert session.ready["route"] == route
        outcome = session.execute_code("x = [1]\nx", tags={"step": 1})
        assert outcome["result"] == {"text/plain": "[1]"}
        assert [variable["name"] for variable in session.variables()] == ["x"]
        assert [record["tags"] for record in session.history()] == [{"step": 1}]
        session.restart()
        assert session.variables() == []
        assert session.interrupt() is False
        session.ping()


def test_output_and_questions_reach_the_callbacks_in_the_calling_thread(session: SessionProcess) -> None:
    seen: list[tuple[str, str, int]] = []

    def on_output(name: str, text: str) -> None:
        seen.append((name, text, threading.get_ident()))

    def on_input(prompt: str, is_password: bool) -> str:
        return f"{prompt}{is_password}"

    outcome = session.execute_code("print('out')\ninput('q')", on_output=on_output, on_input=on_input)
    assert outcome["result"] == {"text/plain": "'qFalse'"}
    assert "".join(text for name, text, _ in seen if name == "stdout").startswith("out\n")
    assert {thread for _, _, thread in seen} == {threading.get_ident()}


def test_a_callback_without_more_input_raises_eof_error_in_the_code(session: SessionProcess) -> None:
    def on_input(prompt: str, is_password: bool) -> str:
        raise EOFError

    assert session.execute_code("input()", on_input=on_input)["error"]["type"] == "EOFError"


def test_what_a_callback_raises_interrupts_the_code_and_is_raised_on(session: SessionProcess) -> None:
    def on_output(name: str, text: str) -> None:
        raise LookupError("mine")

    with pytest.raises(LookupError, match="mine"):
        session.execute_code("print(1, flush=True)\nimport time\ntime.sleep(60)", on_output=on_output)
    assert session.history(last=1)[0]["status"] == "interrupted"


@both_routes
def test_another_thread_can_interrupt_and_ping_while_code_runs(
    env: Mapping[str, str], route: SessionRoute
) -> None:
    with SessionProcess(route=route, env=env) as session, ThreadPoolExecutor(1) as pool:
        is_running = threading.Event()
        code = "print('on', flush=True)\nimport time\ntime.sleep(60)"
        running = pool.submit(session.execute_code, code, on_output=lambda name, text: is_running.set())
        assert is_running.wait(30)
        session.ping()
        with pytest.raises(RequestFailed, match="busy") as busy:
            session.restart()
        assert busy.value.code == -32000
        assert session.interrupt()
        assert running.result(30)["debug_info"]["execution"] == "interrupted"


def test_completion_and_inspection_come_from_the_other_process(session: SessionProcess) -> None:
    session.execute_code("number = 1")
    assert in_time(lambda: session.complete("numb", 4))["matches"] == ["number"]
    assert "Type:      int" in in_time(lambda: session.inspect("number", 3))["data"]["text/plain"]
    with pytest.raises(RequestFailed, match="cursor must be from 0 to 1"):
        session.complete("x", 2)


def test_many_threads_share_a_session_and_each_gets_its_own_replies(session: SessionProcess) -> None:
    def ask(n: int) -> bool:
        if n % 10 == 0:
            session.ping()
        pieces: list[str] = []
        outcome = session.execute_code(f"print({n})\n{n}", on_output=lambda name, text: pieces.append(text))
        return outcome["result"] == {"text/plain": str(n)} and "".join(pieces) == f"{n}\n"

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(ask, range(400)))
    assert sorted(record["seq"] for record in session.history()) == list(range(1, 401))


def test_a_keyboard_interrupt_of_the_caller_is_recorded_before_it_is_raised_on(
    session: SessionProcess,
) -> None:
    def on_output(name: str, text: str) -> None:
        _thread.interrupt_main()

    with pytest.raises(KeyboardInterrupt):
        session.execute_code("print(1, flush=True)\nimport time\ntime.sleep(60)", on_output=on_output)
    assert session.history(last=1)[0]["status"] == "interrupted"
    assert session.execute_code("1 + 1")["success"]


def test_a_time_limit_is_kept_by_the_process(session: SessionProcess) -> None:
    outcome = session.execute_code("while True: pass", time_limit_s=0.2)
    assert outcome["debug_info"]["execution"] == "timeout"


def test_a_request_that_no_reply_could_name_is_refused_at_once(session: SessionProcess) -> None:
    with pytest.raises(InvalidRequest, match=r"execute is \d+ bytes long as a line, of 67108864 at most"):
        session.execute_code("x" * (64 << 20))
    with pytest.raises(InvalidRequest, match="time_limit_s must be a number of seconds above 0, not NaN"):
        session.execute_code("1", time_limit_s=float("nan"))
    assert session.execute_code("1")["debug_info"]["seq"] == 1


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"route": "jupyter"}, "route: must be 'local', 'worker' or None"),
        ({"route": ["worker"]}, "route: must be"),
        ({"preload": "numpy"}, "preload: must be a list of names"),
        ({"limits": 5}, "limits: limits is 5"),
        ({"limits": {"memory": 5}}, "limits: memory is 5"),
        ({"env": "A=1"}, "env: must be a mapping of texts to texts"),
        ({"env": {"A": 1}}, "env: must be a mapping of texts to texts; 'A' is 1"),
        ({"env": {"A": "\0"}}, "env: 'A': can't be a variable"),
        ({"python": None}, "python: must be a path"),
        ({"cwd": "\0"}, "cwd: must be a path"),
        ({"start_bound_s": "1"}, "start_bound_s must be a number of seconds"),
        ({"close_bound_s": float("nan")}, "close_bound_s must be a number of seconds"),
    ],
)
def test_an_argument_that_makes_no_sense_is_named_before_anything_is_started(
    arguments: dict[str, Any], says: str, no_leaks: None
) -> None:
    with pytest.raises((ConfigurationError, InvalidRequest), match=says):
        SessionProcess(**arguments)


@pytest.mark.parametrize(
    ("ask", "says"),
    [
        (lambda session: session.speculate("12"), "codes must be a list of texts, not a str"),
        (lambda session: session.rewind(1 << 70), "rewind takes what JSON can hold"),
        (lambda session: session.execute_code("\ud800"), "execute takes what JSON can hold"),
        (lambda session: session.execute_code("1", tags={"a": object()}), "execute takes what JSON can hold"),
        (lambda session: session.execute_code("1", time_limit_s=float("inf")), "None is no limit"),
        (lambda session: session.execute_code("1", reply_bound_s="1"), "bound_s must be a number of seconds"),
    ],
)
def test_what_can_not_be_asked_is_refused_at_once(
    session: SessionProcess, ask: Callable[[SessionProcess], object], says: str
) -> None:
    with pytest.raises(InvalidRequest, match=says):
        ask(session)
    assert session.execute_code("1")["debug_info"]["seq"] == 1


def test_an_answer_to_input_that_is_no_line_is_the_callers_error(session: SessionProcess) -> None:
    with pytest.raises(TypeError, match="on_input must return a text, not a int"):
        session.execute_code("input()", on_input=lambda prompt, is_password: 5)  # type: ignore[arg-type,return-value]
    assert session.history(last=1)[0]["status"] == "interrupted"


def test_a_reply_that_does_not_come_in_time_is_an_error_and_is_dropped_when_it_comes(
    session: SessionProcess, tmp_path: Path
) -> None:
    may_end = tmp_path / "may end"
    code = f"import os, time\nwhile not os.path.exists({str(may_end)!r}): time.sleep(0.01)\n'late'"
    with pytest.raises(ReplyTimeout, match="no reply to 'execute' within"):
        session.execute_code(code, reply_bound_s=0.1)
    may_end.touch()
    assert session.execute_code("'mine'")["result"] == {"text/plain": "'mine'"}


def test_code_that_does_not_fit_a_pipe_while_output_fills_the_other_is_no_deadlock(
    session: SessionProcess,
) -> None:
    with ThreadPoolExecutor(1) as pool:
        is_running = threading.Event()
        first = pool.submit(
            session.execute_code,
            "for i in range(3000): print('x' * 1000)",
            on_output=lambda name, text: is_running.set(),
        )
        assert is_running.wait(30)
        outcome = session.execute_code("len('" + "y" * 3_000_000 + "')")
        assert outcome["result"] == {"text/plain": "3000000"}
        assert first.result(30)["success"]


@pytest.mark.parametrize(
    ("end", "exit_code", "signal_name"),
    [
        ("import os; os._exit(7)", 7, None),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", None, "SIGKILL"),
    ],
)
def test_a_process_that_dies_is_named_with_how_it_ended(
    session: SessionProcess, end: str, exit_code: int | None, signal_name: str | None
) -> None:
    with pytest.raises(SessionProcessDied) as died:
        session.execute_code(end)
    assert (died.value.exit_code, died.value.signal) == (exit_code, signal_name)
    with pytest.raises(SessionProcessDied):
        session.ping()


def test_all_threads_learn_that_the_process_died(session: SessionProcess) -> None:
    with ThreadPoolExecutor(4) as pool:
        waiting = [pool.submit(session.execute_code, "import time; time.sleep(60)") for _ in range(4)]
        session.ping()
        os.kill(session.pid, signal.SIGKILL)
        assert all(isinstance(future.exception(30), SessionProcessDied) for future in waiting)


def test_a_process_whose_children_hold_its_output_is_still_seen_to_die(
    session: SessionProcess, tmp_path: Path
) -> None:
    code = (
        "import os, time\npid = os.fork()\nif pid == 0:\n    time.sleep(600)\n    os._exit(0)\n"
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(pid))\nos._exit(3)"
    )
    with pytest.raises(SessionProcessDied) as died:
        session.execute_code(code)
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)  # it is there, so nobody has waited for it
    assert died.value.exit_code == 3


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"python": "/nowhere/python"}, "/nowhere/python"),
        ({"cwd": "/nowhere"}, "/nowhere"),
        ({"python": "/bin/false"}, "exit code 1"),
        ({"python": "/bin/echo"}, "protocol|exit code 0"),
    ],
)
def test_a_process_that_cannot_start_is_one_clear_error(
    env: Mapping[str, str], arguments: dict[str, Any], said: str
) -> None:
    with pytest.raises(SessionStartFailed, match=said):
        SessionProcess(env=env, **arguments)


def test_a_failed_start_shows_the_end_of_what_the_process_wrote(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nyes noise | head -c 100000 >&2\necho the reason >&2\nexit 1\n")
    python.chmod(0o700)
    with pytest.raises(SessionStartFailed, match="the reason") as failed:
        SessionProcess(env=env, python=str(python))
    assert len(str(failed.value)) < 5000


@pytest.mark.usefixtures("no_leaks")  # such as the process
def test_a_process_that_is_never_ready_is_given_up_and_killed(tmp_path: Path, env: Mapping[str, str]) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexec sleep 60\n")
    python.chmod(0o700)
    with pytest.raises(SessionStartFailed, match="not ready within"):
        SessionProcess(env=env, python=str(python), start_bound_s=1.0)


def test_close_is_idempotent_and_what_comes_after_is_refused(env: Mapping[str, str]) -> None:
    session = SessionProcess(route="local", env=env)
    session.close()
    session.close()
    for call in (session.ping, session.variables, lambda: session.execute_code("1")):
        with pytest.raises(SessionClosed):
            call()


def test_close_lets_what_runs_finish_within_its_bound(env: Mapping[str, str]) -> None:
    session = SessionProcess(route="local", env=env, close_bound_s=60)
    with ThreadPoolExecutor(1) as pool:
        is_running = threading.Event()
        running = pool.submit(
            session.execute_code,
            "print('on', flush=True)\nimport time\ntime.sleep(0.3)\n'done'",
            on_output=lambda name, text: is_running.set(),
        )
        assert is_running.wait(30)
        session.close()
        assert running.result(30)["result"] == {"text/plain": "'done'"}


@both_routes
def test_close_interrupts_and_then_kills_what_goes_on_for_ever(
    env: Mapping[str, str], route: SessionRoute
) -> None:
    session = SessionProcess(route=route, env=env, close_bound_s=0.2)
    with ThreadPoolExecutor(1) as pool:
        is_running = threading.Event()
        swallow = "while True:\n    try:\n        while True: pass\n    except BaseException: pass"
        code = f"print('on', flush=True)\n{swallow}"
        running = pool.submit(session.execute_code, code, on_output=lambda name, text: is_running.set())
        assert is_running.wait(30)
        session.close()
        error = running.exception(30)
        assert error is None or isinstance(error, SessionProcessDied)
    assert not Path(f"/proc/{session.pid}").exists()


@both_routes
@pytest.mark.usefixtures("no_leaks")
def test_sessions_leave_no_descriptors_threads_or_children_behind(
    env: Mapping[str, str], route: SessionRoute
) -> None:
    for _ in range(5):
        with SessionProcess(route=route, env=env) as session:
            session.execute_code("1")
        with pytest.raises(SessionStartFailed):
            SessionProcess(env=env, python="/bin/false")
        with pytest.raises(SessionStartFailed):
            SessionProcess(env=env, python="/nowhere")


def test_a_program_may_spawn_with_nothing_but_the_module(env: Mapping[str, str]) -> None:
    with SessionProcess(env=env, python=sys.executable, cwd="/") as session:
        assert session.execute_code("import os; os.getcwd()")["result"] == {"text/plain": "'/'"}
