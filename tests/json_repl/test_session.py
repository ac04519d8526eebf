"""A session as its caller sees it, and what of it survives its own death."""

# ruff: noqa: E501 -- the code under test is easier to read in one piece

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import task_logger
from json_repl import Session
from json_repl.errors import InvalidRequest, SessionClosed
from json_repl.session_settings import SessionRoute
from repl_kernel.process_tree import descendants, read_stat
from task_logger.errors import ConfigurationError, LogPathRefused, TaskLogError
from tests.conftest import WaitUntil
from tests.json_repl.conftest import in_time

ROUTES: tuple[SessionRoute, ...] = ("local", "worker")


@pytest.fixture(params=ROUTES)
def session(request: pytest.FixtureRequest, log_root: Path, no_leaks: None) -> Iterator[Session]:
    with Session(request.param, plan_id="P-1", task_id="T-7", task_name="user login") as session:
        yield session


def lines_of(log_root: Path) -> list[dict[str, Any]]:
    return [
        json.loads(line) for path in log_root.glob("*/*.jsonl") for line in path.read_bytes().splitlines()
    ]


def is_alive(pid: int) -> bool:
    stat = read_stat(pid)
    return stat is not None and stat.state not in "ZX"


# What the caller gets, and what the log holds


def test_the_reply_is_plain_json_as_promised(session: Session, log_root: Path) -> None:
    outcome = session.execute_code("x = 1\nx + 1", tags={"step": "4"})
    assert json.loads(json.dumps(outcome)) == outcome
    info = outcome.pop("debug_info")
    assert outcome == {
        "success": True,
        "stdout": "",
        "stderr": "",
        "result": {"text/plain": "2"},
        "error": None,
        "artifacts": [],
        "notices": [],
    }
    assert info.pop("elapsed_ms") >= 0
    log = info.pop("log")
    assert info == {
        "execution": "ok",
        "session_id": session.session_id,
        "seq": 1,
        "route": session.route,
        "added_vars": ["x"],
        "changed_vars": [],
        "removed_vars": [],
        "added_imports": [],
    }
    assert Path(log["path"]) == log_root / "P-1" / "7.user_login.jsonl"
    [line] = lines_of(log_root)
    assert (line["n"], line["hash"]) == (log["n"], log["hash"])
    assert (line["code"], line["tags"], line["task_name"]) == ("x = 1\nx + 1", {"step": "4"}, "user login")
    assert (line["actor"], line["isolation"]) == (
        "python",
        "process" if session.route == "worker" else "none",
    )


def test_a_failure_is_a_reply_like_any_other(session: Session) -> None:
    outcome = session.execute_code("print('a')\n1 / 0")
    assert (outcome["success"], outcome["stdout"]) == (False, "a\n")
    assert outcome["debug_info"]["execution"] == "error"
    assert outcome["error"]["type"] == "ZeroDivisionError"
    assert outcome["error"]["line"] == 2
    assert outcome["stderr"].endswith(outcome["error"]["traceback"])


def test_arguments_of_the_wrong_kind_are_named_before_anything_starts(log_root: Path) -> None:
    odd: dict[str, list[Any]] = {
        "log_dir": [5, True, "\ud800"],
        "pass_env": ["A_TOKEN", 5, [5]],
        "preload": [5],
        "redact": [True, 5, "secret", ["secret"]],
        "actor": [5, b"me"],
    }
    for name, values in odd.items():
        for value in values:
            settings: dict[str, Any] = {name: value}
            with pytest.raises(ConfigurationError, match=f"^{name}: "):
                Session("worker", **settings)
    unknown: dict[str, Any] = {"nonsense": 1}
    with pytest.raises(TypeError, match="nonsense"):  # and nothing of the half-made session on stderr
        Session("worker", **unknown)


def test_an_exception_that_hides_what_it_is_is_an_error_like_any_other(session: Session) -> None:
    classes = {
        "class M(type):\n    def __getattribute__(c, n): raise SystemExit(3)\nclass E(Exception, metaclass=M): pass": "",
        "class M(type):\n    __name__ = property(lambda c: 5)\nclass E(Exception, metaclass=M): pass": "",
        "class E(Exception):\n    __traceback__ = 5": "x",
        "class E(Exception):\n    def __getattribute__(s, n): raise SystemExit(n)": "x",
        "class E(SyntaxError):\n    filename = property(lambda s: 1 / 0)": "x",
    }
    for code, message in classes.items():
        outcome = session.execute_code(f"{code}\nraise E('x')" if message else f"{code}\nraise E")
        assert outcome["error"] is not None, code
        assert (outcome["error"]["type"], outcome["error"]["message"]) == ("E", message)
    assert session.execute_code("1")["debug_info"]["seq"] == 6


def test_history_is_this_sessions_lines_in_order(session: Session, log_root: Path) -> None:
    with Session("local", plan_id="P-1", task_id="T-7", task_name="user login") as other:
        for number in range(3):
            session.execute(f"{number}")
            other.execute("'other'")
    assert [line["code"] for line in session.history()] == ["0", "1", "2"]
    assert [line["code"] for line in session.history(last=2)] == ["1", "2"]
    assert len(lines_of(log_root)) == 6


def test_a_number_of_lines_that_can_t_be_meant_is_named(log_root: Path) -> None:
    odd: list[Any] = [-1, 1.5, "1", True, 10**30]
    with Session("local") as session:
        for last in odd:
            with pytest.raises(InvalidRequest, match=r"last must be a number of lines"):
                session.history(last)


@pytest.mark.parametrize("odd", ["a\u2028b\u0085c", "nul \0 text", "\ud800", "\x1b[31m", "𐍈", "\r\n"])
def test_odd_texts_in_code_tags_and_names_make_one_line_each(odd: str, log_root: Path) -> None:
    for route in ROUTES:
        with Session(route, plan_id=odd, task_id=odd, task_name=odd) as session:
            session.execute("x = 1", tags={"odd": odd})
            session.execute(f"print({odd!r})")
            session.execute(f"'''{odd}'''")
    assert len(lines_of(log_root)) == 6


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"code": 5}, "code"),
        ({"code": b"1"}, "code"),
        ({"code": "1", "time_limit_s": 0}, "time_limit_s"),
        ({"code": "1", "time_limit_s": float("nan")}, "time_limit_s"),
        ({"code": "1", "time_limit_s": True}, "time_limit_s"),
        ({"code": "1", "tags": [1]}, "tags"),
        ({"code": "1", "tags": {1: 2}}, "tags"),
    ],
)
def test_arguments_that_make_no_sense_are_named_and_nothing_runs(
    session: Session, log_root: Path, arguments: dict[str, Any], named: str
) -> None:
    with pytest.raises(InvalidRequest, match=named):
        session.execute(**arguments)
    assert lines_of(log_root) == []
    assert session.execute("1").request.seq == 1


def test_settings_that_make_no_sense_are_named(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (
        {"route": "moon"},
        {"route": "local", "isolation": "process"},
        {"route": "worker", "isolation": "x"},
    ):
        with pytest.raises(ConfigurationError):
            Session(**arguments)  # type: ignore[arg-type]  # that is the point
    monkeypatch.setenv("USE_SUBPROCESS_WORKER", "yes")
    with pytest.raises(ConfigurationError, match="USE_SUBPROCESS_WORKER"):
        Session()


def test_the_environment_chooses_route_and_task(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USE_SUBPROCESS_WORKER", "1")
    monkeypatch.setenv("FLOW_PLAN_ID", "P-9")
    monkeypatch.setenv("FLOW_TASK_ID", "T-12")
    with Session() as session:
        assert session.route == "worker"
        session.execute("1")
    assert [path.relative_to(log_root).as_posix() for path in log_root.glob("*/*.jsonl")] == [
        "P-9/12.adhoc.jsonl"
    ]


def test_a_log_that_cannot_be_one_is_refused_and_nothing_is_left(
    log_root: Path, no_leaks: None, tmp_path: Path
) -> None:
    (log_root / "P-1").mkdir(parents=True)
    (log_root / "P-1" / "7.x.jsonl").symlink_to("/dev/full")
    for route in ROUTES:
        with pytest.raises(LogPathRefused):
            Session(route, plan_id="P-1", task_id="T-7", task_name="x")
    (log_root / "P-1" / "7.x.jsonl").unlink()


# Task context


def test_the_task_context_tags_records_and_reaches_the_worker(session: Session, log_root: Path) -> None:
    code = "import os\nos.environ.get('FLOW_TASK_ID')"
    session.execute(code)
    with task_logger.task_context(task_id="T-8", step="s"):
        inside = session.execute(code)
        with task_logger.task_context(plan_id="P-2"):
            session.execute(code)
    session.execute(code)
    by_seq = {line["seq"]: line for line in lines_of(log_root)}
    assert [(by_seq[seq]["plan_id"], by_seq[seq]["task_id"]) for seq in (1, 2, 3, 4)] == [
        ("P-1", "T-7"),
        ("P-1", "T-8"),
        ("P-2", "T-8"),
        ("P-1", "T-7"),
    ]
    assert by_seq[2]["tags"] == {"step": "s"}
    if session.route == "worker":
        assert inside.outcome.result == {"text/plain": "'T-8'"}
    else:
        assert inside.outcome.result is None


def test_threads_and_tasks_of_the_caller_see_its_context(session: Session, log_root: Path) -> None:
    async def in_a_task() -> None:
        await asyncio.to_thread(session.execute, "'task'")

    with task_logger.task_context(task_id="T-9"):
        task_logger.run_in_thread(session.execute, "'thread'").result()
        asyncio.run(in_a_task())
        plain = threading.Thread(target=session.execute, args=("'plain'",))
        plain.start()
        plain.join()
    tasks = {line["code"]: line["task_id"] for line in lines_of(log_root)}
    assert tasks == {"'thread'": "T-9", "'task'": "T-9", "'plain'": "T-7"}


# A host stays as it was


def _process_state() -> dict[str, object]:
    umask = os.umask(0o22)
    os.umask(umask)
    return {
        "signals": {number: signal.getsignal(number) for number in signal.valid_signals()},
        "streams": (sys.stdin, sys.stdout, sys.stderr, sys.__stdout__, sys.displayhook, sys.excepthook),
        "environ": dict(os.environ),
        "main": sys.modules["__main__"],
        "umask": umask,
        "cwd": str(Path.cwd()),
        "argv": list(sys.argv),
        "path": list(sys.path),
        "recursion": sys.getrecursionlimit(),
        "subreaper and dumpable": [
            line
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(("NoNewPrivs", "Seccomp:", "CoreDumping"))
        ],
        "limits": Path("/proc/self/limits").read_text(),
    }


@pytest.mark.parametrize("route", ROUTES)
def test_nothing_of_a_host_process_changes(route: Any, log_root: Path, wait_until: WaitUntil) -> None:
    before, threads = _process_state(), set(threading.enumerate())  # one may end meanwhile, none may begin
    with Session(route) as session:
        during = _process_state()
        seen: dict[str, object] = {}
        session.execute("print('x')\nx = input", on_output=lambda *_: seen.update(_process_state()))
        assert set(threading.enumerate()) <= threads
        session.execute("1 / 0")
        session.execute("while True: pass", time_limit_s=0.1)
    assert during == before
    assert {name for name in before if seen[name] != before[name]} <= {"streams"}
    wait_until(lambda: set(threading.enumerate()) <= threads)
    assert _process_state() == before


def test_prints_of_other_threads_of_the_host_stay_its_own(
    log_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    running, printed = threading.Event(), threading.Event()

    def other() -> None:
        assert running.wait(20)
        print("of the host")
        printed.set()

    thread = threading.Thread(target=other)
    thread.start()
    with Session("local") as session:
        session.execute("import time")
        code = "print('of the code')\nuntil = time.monotonic() + 20\nwhile not done() and time.monotonic() < until: time.sleep(0.001)"
        session._recorded._inner._runner.namespace["done"] = printed.is_set  # type: ignore[attr-defined]  # the only way in
        record = session.execute(code, on_output=lambda *_: running.set())
    thread.join()
    assert record.outcome.stdout == "of the code\n"
    assert capsys.readouterr().out == "of the host\n"


def test_executed_code_may_hold_a_session_of_its_own(
    log_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = "from json_repl import Session\nprint('before')\nwith Session('local') as inner:\n    r = inner.execute_code('print(5)')\nprint('after')\nr['stdout']"
    with Session("local") as session:
        record = session.execute(code)
    assert record.outcome.result == {"text/plain": "'5\\n'"}
    assert record.outcome.stdout == "before\nafter\n"
    assert capsys.readouterr().out == ""


# Many callers


def test_calls_of_64_threads_take_turns_and_each_gets_its_own(session: Session, log_root: Path) -> None:
    got: list[tuple[int, str, str]] = []

    def call(number: int) -> None:
        for turn in range(5):
            outcome = session.execute(f"print({number})\n{number * 100 + turn}").outcome
            assert outcome.result
            got.append((number * 100 + turn, str(outcome.result["text/plain"]), outcome.stdout))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(got) == 320
    assert all(result == str(value) and stdout == f"{value // 100}\n" for value, result, stdout in got)
    assert sorted(line["seq"] for line in lines_of(log_root)) == list(range(1, 321))


def test_fifty_sessions_in_one_process_write_one_chain(log_root: Path, no_leaks: None) -> None:
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(Session("local" if i % 5 else "worker")) for i in range(50)]
        for session in sessions:
            session.execute("x = 1")
        for number, session in enumerate(sessions):
            assert session.execute(f"x += {number}\nx").outcome.result == {"text/plain": str(number + 1)}
    lines = lines_of(log_root)
    assert len(lines) == 100
    assert len({line["session_id"] for line in lines}) == 50


def test_an_awaiting_task_that_is_cancelled_leaves_the_session_usable(
    session: Session, log_root: Path
) -> None:
    async def main() -> None:
        started = threading.Event()
        call = asyncio.to_thread(
            session.execute, "print('x', end='')\nwhile True: pass", on_output=lambda *_: started.set()
        )
        task = asyncio.create_task(call)
        await asyncio.to_thread(started.wait, 20)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert session.interrupt()

    asyncio.run(main())
    assert session.execute("1 + 1").outcome.result == {"text/plain": "2"}
    assert [line["status"] for line in lines_of(log_root)] == ["interrupted", "ok"]


# The log under it


def test_a_log_that_is_removed_or_moved_costs_no_later_line(session: Session, log_root: Path) -> None:
    session.execute("1")
    Path(session.log_path).rename(Path(session.log_path).with_suffix(".moved"))
    outcome = session.execute_code("2")
    assert outcome["success"]
    session.execute("3")
    session.execute("4")
    codes = [line["code"] for line in lines_of(log_root)]
    assert codes[-2:] == ["3", "4"]
    assert "2" in codes or outcome["notices"]


def test_strict_sessions_run_nothing_that_cannot_be_logged(
    log_root: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TASK_LOG_STRICT", "1")
    mark = tmp_path / "ran"
    for route in ROUTES:
        with Session(route, task_id="T-1", task_name=route) as session:
            session.execute("1")
            Path(session.log_path).unlink()
            with pytest.raises(TaskLogError):
                session.execute(f"open({str(mark)!r}, 'w').close()")
    assert not mark.exists()


# Completion and inspection


def test_completion_and_inspection_are_plain_json_and_leave_no_line(session: Session, log_root: Path) -> None:
    session.execute_code("number = 1")
    completed = in_time(lambda: session.complete("numb", 4))
    inspected = in_time(lambda: session.inspect("number", 6, 1))
    assert completed["matches"] == ["number"]
    assert "Type:      int" in inspected["data"]["text/plain"]
    assert json.loads(json.dumps([completed, inspected])) == [completed, inspected]
    assert len(lines_of(log_root)) == 1


def test_questions_that_make_no_sense_are_refused_by_name(session: Session) -> None:
    wrong: list[tuple[Any, str]] = [
        (lambda: session.complete("x", 2), "cursor must be from 0 to 1"),
        (lambda: session.complete("x", True), "cursor must be"),
        (lambda: session.inspect(b"x", 0), "code must be a text"),  # type: ignore[arg-type]  # on purpose
        (lambda: session.inspect("x", 0, 2), "detail_level must be 0 or 1"),
        (lambda: session.inspect("x", 0, True), "detail_level must be 0 or 1"),
    ]
    for ask, said in wrong:
        with pytest.raises(InvalidRequest, match=said):
            ask()


def test_a_question_from_within_an_execution_is_refused_and_the_execution_goes_on(session: Session) -> None:
    said: list[str] = []

    def on_output(name: str, text: str) -> None:
        for ask in (session.complete, session.inspect):
            with pytest.raises(InvalidRequest) as refused:
                ask("x", 1)
            said.append(str(refused.value))

    outcome = session.execute_code("print('x', end='')\n6 * 7", on_output=on_output)
    assert (outcome["stdout"], outcome["result"]) == ("x", {"text/plain": "42"})
    assert said == [
        f"{name} was called from within an execution of the same session" for name in ("complete", "inspect")
    ]


# The end


def test_a_closed_session_says_so_and_closing_again_is_fine(session: Session) -> None:
    session.close()
    session.close()
    calls = (lambda: session.execute("1"), session.restart, session.variables, session.history)
    for call in (*calls, lambda: session.complete("x", 1), lambda: session.inspect("x", 1)):
        with pytest.raises(SessionClosed):
            call()
    assert session.interrupt() is False


def test_closing_while_code_runs_writes_its_line(session: Session, log_root: Path) -> None:
    started = threading.Event()

    def close_once_started() -> None:
        assert started.wait(20)
        session.close()

    closing = threading.Thread(target=close_once_started)
    closing.start()
    record = session.execute("print('x', end='')\nwhile True: pass", on_output=lambda *_: started.set())
    closing.join()
    assert record.outcome.status == "interrupted"
    assert [(line["status"], line["stdout"]) for line in lines_of(log_root)] == [("interrupted", "x")]


def test_a_restart_keeps_session_and_numbering(session: Session) -> None:
    session.execute("x = 1")
    session.restart()
    record = session.execute("'x' in globals()")
    assert record.outcome.result == {"text/plain": "False"}
    assert record.request.seq == 2


def test_a_fork_of_the_host_leaves_the_session_alone(session: Session, log_root: Path) -> None:
    session.execute("x = 1")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            session.execute("x = 2")
        except SessionClosed:
            code = 0
        except BaseException:  # noqa: BLE001 -- the parent only sees the exit code
            code = 3
        with contextlib.suppress(BaseException):
            session.close()
        os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert session.execute("x").outcome.result == {"text/plain": "1"}
    assert [line["code"] for line in lines_of(log_root)] == ["x = 1", "x"]


def test_a_fork_that_leaves_while_another_thread_executes_ends_normally(log_root: Path) -> None:
    program = """
import os, sys, threading
from json_repl import Session
session = Session('worker')
started = threading.Event()
thread = threading.Thread(target=session.execute, args=("print('x', end='')\\nimport time\\ntime.sleep(0.5)",), kwargs={'on_output': lambda *_: started.set()})
thread.start()
started.wait()
pid = os.fork()
if pid == 0:
    sys.exit(5)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
thread.join()
session.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("5\n", "")
    assert [line["status"] for line in lines_of(log_root)] == ["ok"]


class Host:
    """A program with a session, which reports one line once its code has started."""

    def __init__(self, code: str, route: str = "worker", catch: str = "") -> None:
        program = f"""
import json, os, sys
from json_repl import Session
session = Session({route!r})
print(json.dumps(session.execute_code('import os, signal, sys\\n(os.getpid(), os.getppid())')['result']['text/plain']), flush=True)
def started(name, text):
    os.write(1, text.encode())
try:
    session.execute_code({code!r}, on_output=started)
    print('idle', flush=True)
    sys.stdin.read()
except KeyboardInterrupt:
    print('interrupted', session.history()[-1]['status'], flush=True)
"""
        self.process = subprocess.Popen(
            [sys.executable, "-c", program], stdin=-1, stdout=-1, bufsize=0, process_group=0
        )
        assert self.process.stdout
        self.pids = [int(pid) for pid in json.loads(self.process.stdout.readline()).strip("()").split(",")]

    def line(self) -> str:
        assert self.process.stdout
        assert select.select([self.process.stdout], [], [], 20)[0]
        return self.process.stdout.readline().decode()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.stdout.close()


@pytest.mark.parametrize(
    "code",
    [
        "pass",
        "print('go')\nwhile True: pass",
        "print('go')\nx = sum(range(10**12))",
        "print('go')\nimport time; time.sleep(60)",
        "print('go')\nos.kill(os.getpid(), signal.SIGSTOP)",
        "import subprocess\nfor a in ([], ['setsid']): subprocess.Popen([*a, 'sleep', '60'])\nprint('go')\nwhile True: pass",
        "if os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        import time; time.sleep(60)\n    os._exit(0)\nprint('go')\nos.wait()\nsignal.pause()",
    ],
)
def test_nothing_outlives_a_killed_session_and_its_line_says_unknown(
    code: str, log_root: Path, no_leaks: None, wait_until: WaitUntil
) -> None:
    host = Host(code)
    try:
        assert host.line().strip() in ("go", "idle")
        below = {stat.pid for stat in descendants(host.process.pid)}
        assert set(host.pids) <= below
        host.process.kill()
        host.process.wait()
        wait_until(lambda: not any(map(is_alive, below)))
    finally:
        host.end()
    with Session(
        "local"
    ) as session:  # the next writer settles what the dead one left, and no lock is in its way
        session.execute("'next'")
    statuses = [line["status"] for line in lines_of(log_root)]
    assert statuses == ["ok", "ok" if code == "pass" else "unknown", "ok"]


@pytest.mark.parametrize("route", ROUTES)
def test_ctrl_c_in_a_host_interrupts_writes_the_line_and_is_raised_on(route: str, log_root: Path) -> None:
    host = Host("print('go')\nwhile True: pass", route)
    try:
        assert host.line() == "go\n"
        host.process.send_signal(signal.SIGINT)
        assert host.line() == "interrupted interrupted\n"
    finally:
        host.end()
    assert [line["status"] for line in lines_of(log_root)] == ["ok", "interrupted"]


def test_sessions_that_are_started_and_closed_leave_nothing(log_root: Path, no_leaks: None) -> None:
    for number in range(20):
        with Session("worker" if number % 2 else "local") as session:
            session.execute("x = 1")
    assert len(lines_of(log_root)) == 20


def test_a_session_that_is_only_dropped_is_closed(
    log_root: Path, no_leaks: None, wait_until: WaitUntil
) -> None:
    session = Session("worker")
    session.execute("1")
    del session
    gc.collect()  # it is part of a cycle
    wait_until(lambda: not descendants(os.getpid()))
