"""The server on stdio, as its clients meet it: real processes, real pipes, both routes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from json_repl import Session
from json_repl.descriptors import StandardDescriptors
from json_repl.messages import Request
from json_repl.params import Execute, InputReply
from json_repl.stdio import StdioServer
from tests.conftest import PATIENCE_S, WaitUntil
from tests.json_repl.conftest import in_time

ROUTES = ("local", "worker")

both_routes = pytest.mark.parametrize("route", ROUTES)

Start = Callable[..., Any]

CHILDREN_WRITE = (
    "import os, subprocess, sys\n"
    "os.write(1, b'raw\\n'); subprocess.run(['echo', 'child']); print('printed')\n"
    "os.write(2, b'raw err\\n')"
)


@both_routes
def test_the_first_line_says_who_is_ready_and_where_the_log_is(start_server: Start, route: str) -> None:
    server = start_server(route, FLOW_PLAN_ID="P-1", FLOW_TASK_ID="T-7", FLOW_TASK_NAME="bug fix")
    ready = server.ready
    assert ready["signal"] == "__READY__"
    assert (ready["route"], ready["plan_id"], ready["task_id"], ready["protocol"]) == (route, "P-1", "T-7", 1)
    assert ready["python"] == sys.version.split()[0]
    assert ready["log"].endswith("/P-1/7.bug_fix.jsonl")
    server.ask("execute", code="x = 1")
    assert Path(ready["log"]).read_bytes().count(b"\n") == 1


def test_the_one_liner_of_a_shell_gets_its_reply(tmp_path: Path) -> None:
    request = '{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"1+1"}}\n'
    done = subprocess.run(
        [sys.executable, "-m", "json_repl"],
        input=request,
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TASK_LOG_DIR": str(tmp_path)},
        check=False,
    )
    ready, reply = (json.loads(line) for line in done.stdout.splitlines())
    assert ready["method"] == "ready"
    assert reply["result"]["result"] == {"text/plain": "2"}
    assert (done.returncode, done.stderr) == (0, "")


def test_the_name_that_backends_spawn_serves_the_same(start_server: Start) -> None:
    assert start_server(command=("-m", "json_repl_session")).ask("execute", code="1 + 1")["success"]


@both_routes
def test_an_execution_is_answered_with_the_wire_form(start_server: Start, route: str) -> None:
    outcome = start_server(route).ask(
        "execute", code="import math\nx = 1\nprint('hi')\nx + 1", tags={"step": "4"}
    )
    assert (outcome["success"], outcome["stdout"], outcome["stderr"]) == (True, "hi\n", "")
    assert (outcome["result"], outcome["error"]) == ({"text/plain": "2"}, None)
    debug = outcome["debug_info"]
    assert (debug["execution"], debug["seq"], debug["route"], debug["added_vars"]) == (
        "ok",
        1,
        route,
        ["math", "x"],
    )
    assert debug["log"]["n"] == 1


@both_routes
def test_code_that_fails_is_a_result(start_server: Start, route: str) -> None:
    server = start_server(route)
    outcome = server.ask("execute", code="print('before')\n1/0")
    assert (outcome["success"], outcome["stdout"]) == (False, "before\n")
    assert outcome["error"]["type"] == "ZeroDivisionError"
    assert outcome["stderr"].endswith("ZeroDivisionError: division by zero\n")
    assert server.ask("execute", code="raise SystemExit(3)")["error"]["type"] == "SystemExit"
    assert server.ask("execute", code="1 + 1")["success"]


@both_routes
def test_variables_history_and_restart_answer_in_turn(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="x = [1, 2]")
    server.send("variables", 2)
    server.send("history", 3)
    replies = [server.read() for _ in range(3)]
    assert [reply["id"] for reply in replies] == [1, 2, 3]
    (variable,) = replies[1]["result"]
    assert (variable["name"], variable["type"]) == ("x", "list")
    (record,) = replies[2]["result"]
    assert record["code"] == "x = [1, 2]"
    assert server.ask("restart") == {}
    assert server.ask("variables") == []
    assert not server.ask("execute", code="x")["success"]
    assert [record["seq"] for record in server.ask("history", last=1)] == [2]


@both_routes
def test_ping_and_interrupt_are_answered_while_code_runs(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="print('on', end='')\nimport time\ntime.sleep(60)", stream=True)
    assert server.read()["params"]["text"] == "on"  # in one write: no other piece comes between replies
    server.send("ping", 2)
    assert server.read() == {"jsonrpc": "2.0", "id": 2, "result": {}}
    server.send("restart", 3)
    assert server.read()["error"]["code"] == -32000
    server.send("interrupt", 4)
    replies = {reply["id"]: reply["result"] for reply in (server.read_reply_of(1, 4))}
    assert replies[4] == {"interrupted": True}
    assert replies[1]["debug_info"]["execution"] == "interrupted"
    assert replies[1]["stdout"] == "on"
    assert server.ask("interrupt") == {"interrupted": False}
    assert server.ask("execute", code="1 + 1")["success"]
    assert [line["status"] for line in server.log_lines()] == ["interrupted", "ok"]


@both_routes
def test_a_time_limit_ends_an_execution_and_keeps_its_output(start_server: Start, route: str) -> None:
    server = start_server(route)
    outcome = server.ask("execute", code="print('kept')\nwhile True: pass", time_limit_s=0.3)
    assert (outcome["debug_info"]["execution"], outcome["stdout"]) == ("timeout", "kept\n")
    assert server.ask("execute", code="2")["result"] == {"text/plain": "2"}


@both_routes
def test_output_is_streamed_as_it_is_written_and_the_reply_holds_it_all(
    start_server: Start, tmp_path: Path, route: str
) -> None:
    server = start_server(route)
    code = (
        "import os, sys, time\nfor i in range(3):\n    print(i)\n"
        f"    while not os.path.exists({str(tmp_path)!r} + f'/seen {{i}}'): time.sleep(0.005)\n"
        "print('é' * 50_000, file=sys.stderr)"
    )
    server.send("execute", "s", code=code, stream=True)
    streamed = {"stdout": "", "stderr": ""}
    while "method" in (message := server.read()):
        assert message["params"]["id"] == "s"
        assert len(message["params"]["text"].encode()) <= 64 << 10
        streamed[message["params"]["name"]] += message["params"]["text"]
        for number in streamed["stdout"].splitlines():
            (tmp_path / f"seen {number}").touch()  # the code doesn't go on before
    assert streamed["stdout"] == message["result"]["stdout"] == "0\n1\n2\n"
    assert streamed["stderr"] == message["result"]["stderr"] == "é" * 50_000 + "\n"


@both_routes
def test_nothing_but_messages_appears_on_stdout_whatever_code_writes_to_descriptor_1(
    start_server: Start, route: str
) -> None:
    server = start_server(route)
    outcome = server.ask("execute", code=CHILDREN_WRITE)
    assert outcome["stdout"] == "raw\nchild\nprinted\n"
    assert outcome["stderr"] == "raw err\n"
    # What a background program writes after its execution must not get there either.
    server.ask(
        "execute", code="import subprocess; late = subprocess.Popen('sleep 0.2; echo late', shell=True)"
    )
    server.ask("execute", code="late.wait(); import sys; print('x', file=sys.__stdout__)")
    server.send("shutdown", "last")
    assert [message["id"] for message in server.read_all()] == ["last"]
    assert server.wait() == 0


@both_routes
def test_code_cannot_read_the_requests(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send(
        "execute",
        1,
        code="import os, subprocess\n[os.read(0, 10), subprocess.run(['cat'], capture_output=True).stdout]",
    )
    server.send("execute", 2, code="'mine'")
    assert server.read()["result"]["result"] == {"text/plain": "[b'', b'']"}
    assert server.read()["result"]["result"] == {"text/plain": "'mine'"}


@both_routes
def test_input_is_asked_for_and_answered(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="name = input('who? ')\nname", allow_input=True)
    asked = server.read()
    assert (asked["method"], asked["params"]) == (
        "input_request",
        {"id": 1, "prompt": "who? ", "password": False},
    )
    server.send("input_reply", 2, text="me")
    assert server.read()["result"] == {"accepted": True}
    assert server.read()["result"]["result"] == {"text/plain": "'me'"}
    assert server.ask("input_reply", text="nobody asked") == {"accepted": False}


@both_routes
def test_input_without_anyone_to_ask_is_a_clear_eof_error(start_server: Start, route: str) -> None:
    server = start_server(route)
    outcome = server.ask("execute", code="input('x')")
    assert (outcome["error"]["type"], "allow_input" in outcome["error"]["message"]) == ("EOFError", True)
    server.send("execute", 1, code="input('x')", allow_input=True)
    assert server.read()["method"] == "input_request"
    server.close_input()
    assert server.read()["result"]["error"]["type"] == "EOFError"
    assert server.wait() == 0


class Asking:
    """A server whose code asks in another thread, as its reader's thread meets it."""

    def __init__(self, session: Session) -> None:
        input_fd, self._client_fd = os.pipe()
        self.output_fd, written_fd = os.pipe()
        self.server = StdioServer(session, StandardDescriptors(input_fd, written_fd, 2))
        self._fds = (input_fd, self._client_fd, self.output_fd, written_fd)
        self._written_fd = written_fd
        self.answer: str | None = None
        self._thread = threading.Thread(target=self._ask)

    def _ask(self) -> None:
        on_input = self.server._input_of(1, Execute("", allow_input=True))
        try:
            self.answer = on_input("who? ", False)
        except EOFError as exc:
            self.answer = repr(exc)

    def begin(self) -> None:
        self._thread.start()

    def ends_within(self, seconds: float) -> bool:
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def let_nothing_be_written(self) -> None:
        """Fill the pipe to the client."""
        os.set_blocking(self._written_fd, False)
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(self._written_fd, b"\n" * 4096)

    def read_until(self, expected: bytes) -> None:
        """Read what the client gets up to a message with this in it."""
        read = b""
        while expected not in read:
            assert select.select([self.output_fd], [], [], PATIENCE_S)[0], read.replace(b"\n", b"")
            read += os.read(self.output_fd, 1 << 16)

    def close(self) -> None:
        for fd in (*self._fds, self.server._reader._wake_read_fd, self.server._reader._wake_write_fd):
            os.close(fd)


@pytest.fixture
def asking(log_root: Path) -> Iterator[Asking]:
    with Session("local") as session:
        made = Asking(session)
        yield made
        made.close()


def answered(request_id: str | None) -> Request:
    return Request("input_reply", InputReply("me"), request_id, request_id is not None)


def test_that_an_answer_is_accepted_is_said_before_the_code_has_it(asking: Asking) -> None:
    asking.begin()
    assert b'"input_request"' in os.read(asking.output_fd, 1 << 16)
    asking.let_nothing_be_written()
    taking = threading.Thread(target=asking.server._take_urgent, args=(answered("r"),))
    taking.start()
    assert not asking.ends_within(0.3)
    asking.read_until(b'"accepted":true')
    assert asking.ends_within(PATIENCE_S)
    taking.join()
    assert asking.answer == "me"


def test_an_answer_that_is_the_end_of_the_input_as_well_reaches_the_code(asking: Asking) -> None:
    asking.let_nothing_be_written()
    asking.begin()
    while asking.server._question is None:
        assert not asking.ends_within(0.001)
    asking.server._take_urgent(answered(None))
    asking.server._reader.has_ended = True
    asking.read_until(b'"input_request"')
    assert asking.ends_within(PATIENCE_S)
    assert asking.answer == "me"


@both_routes
def test_code_that_waits_for_input_can_be_interrupted(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="input('x')", allow_input=True)
    assert server.read()["method"] == "input_request"
    server.send("interrupt", 2)
    replies = {reply["id"]: reply["result"] for reply in server.read_reply_of(1, 2)}
    assert not replies[1]["success"]
    assert server.ask("execute", code="1")["success"]


@both_routes
def test_a_keyboard_interrupt_that_code_raises_itself_is_its_own_affair(
    start_server: Start, route: str
) -> None:
    server = start_server(route)
    assert not server.ask("execute", code="raise KeyboardInterrupt")["success"]
    assert server.ask("execute", code="1 + 1")["success"]
    assert len(server.log_lines()) == 2


@both_routes
def test_a_fork_that_code_lets_run_on_does_not_answer_twice(start_server: Start, route: str) -> None:
    server = start_server(route)
    assert server.ask("execute", code="import os; pid = os.fork()")["success"]
    assert server.ask("execute", code="os.waitpid(pid, 0)")["success"]
    server.send("shutdown", "last")
    assert [message["id"] for message in server.read_all()] == ["last"]
    assert len(server.log_lines()) == 2


@both_routes
def test_whoever_has_its_reply_may_restart(start_server: Start, route: str) -> None:
    server = start_server(route)
    for _ in range(100):
        server.ask("execute", code="1")
        assert server.ask("restart") == {}


def test_requests_of_every_wrong_kind_get_one_reply_each_and_the_server_stays(start_server: Start) -> None:
    server = start_server()
    wrong = [
        (b"garbage", -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"\xff"}}', -32700, None),
        (b'{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"\\ud800"}}', -32700, None),
        (b"[" * 100_000, -32700, None),
        (b"[]", -32600, None),
        (b"{}{}", -32600, None),
        (b'{"jsonrpc":"2.0","id":1.5,"method":"ping"}', -32600, None),
        (b'{"jsonrpc":"2.0","id":2,"method":"ping","id":2}', -32600, 2),
        (b'{"jsonrpc":"2.0","id":3,"method":"nope"}', -32601, 3),
        (b'{"jsonrpc":"2.0","id":4,"method":"inspects"}', -32601, 4),
        (b'{"jsonrpc":"2.0","id":5,"method":"execute"}', -32602, 5),
        (b'{"jsonrpc":"2.0","id":6,"method":"execute","params":{"code":"","atomic":true}}', -32602, 6),
        (b'{"jsonrpc":"2.0","id":7,"method":"ping","params":{"' + b"k" * 10**6 + b'":1}}', -32602, 7),
    ]
    for line, code, request_id in wrong:
        server.send_raw(line + b"\n")
        reply = server.read()
        assert (reply["error"]["code"], reply["id"]) == (code, request_id), line[:80]
        assert len(reply["error"]["message"]) < 500
    server.send_raw(b"\n  \n\r\n")
    assert server.ask("execute", code="1 + 1")["debug_info"]["seq"] == 1


def test_a_message_cut_by_a_line_end_is_two_wrong_ones(start_server: Start) -> None:
    server = start_server()
    server.send_raw(b'{"jsonrpc":"2.0","id":1,\n"method":"ping"}\n')
    assert [server.read()["error"]["code"] for _ in range(2)] == [-32700, -32700]


def test_a_notification_is_executed_without_a_reply(start_server: Start) -> None:
    server = start_server()
    server.send("execute", code="x = 5")
    server.send("nope")
    assert server.ask("execute", code="x")["result"] == {"text/plain": "5"}


def test_a_line_that_is_too_long_gets_one_reply_and_the_next_is_served(start_server: Start) -> None:
    server = start_server()
    for _ in range(100):
        server.send_raw(b"x" * 10**6)
    server.send_raw(b"\n")
    assert server.read()["error"]["code"] == -32600
    assert server.ask("execute", code="1 + 1")["success"]
    assert _peak_rss_mb(server.process.pid) < 300


@both_routes
def test_a_megabyte_of_code_runs(start_server: Start, route: str) -> None:
    code = "x = '" + "a" * 10**6 + "'\nlen(x)"
    assert start_server(route).ask("execute", code=code)["result"] == {"text/plain": "1000000"}


@both_routes
def test_characters_that_end_lines_elsewhere_stay_inside_theirs(start_server: Start, route: str) -> None:
    server = start_server(route)
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg\x1dh\x1ei\rj\x00k"
    server.send("execute", text, code=f"print({text!r}, end='')")
    line = server.read_line().decode()
    assert len(line.splitlines()) == 1
    reply = json.loads(line)
    assert (reply["id"], reply["result"]["stdout"]) == (text, text)


@both_routes
def test_output_that_is_no_text_arrives_as_its_escapes(start_server: Start, route: str) -> None:
    server = start_server(route)
    for code, expected in (
        ("import os; os.write(1, bytes([0, 65, 255, 10]))", "\x00A\\xff\n"),
        ("print('\\ud800')", "\\ud800\n"),
    ):
        server.send("execute", 1, code=f"{code};", stream=True)
        streamed = ""
        while "method" in (message := server.read()):
            streamed += message["params"]["text"]
        assert message["result"]["stdout"] == expected
        # Decoded as it comes, a stream may show the bytes of half a character that the reply names.
        assert streamed in (expected, "\\xed\\xa0\\x80\n")


@both_routes
def test_pipelined_requests_are_answered_in_order(start_server: Start, route: str) -> None:
    server = start_server(route)
    count = 500
    lines = (
        json.dumps({"jsonrpc": "2.0", "id": n, "method": "execute", "params": {"code": f"{n}"}})
        for n in range(count)
    )
    pid = os.fork()
    if pid == 0:
        server.send_raw("".join(f"{line}\n" for line in lines).encode())
        os._exit(0)
    for n in range(count):
        reply = server.read()
        assert (reply["id"], reply["result"]["result"]["text/plain"]) == (n, str(n))
    os.waitpid(pid, 0)
    assert [line["seq"] for line in server.log_lines()] == list(range(1, count + 1))


@both_routes
def test_completion_and_inspection_are_answered_and_not_logged(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.ask("execute", code="smile = '\U0001f600'\ndef area(r):\n    'Of a circle.'\n    return r")
    code = "'\U0001f600' + smi"
    assert in_time(lambda: server.ask("complete", code=code, cursor=len(code))) == {
        "status": "ok",
        "matches": ["smile"],
        "cursor_start": len(code) - 3,
        "cursor_end": len(code),
        "metadata": {},
    }
    found = in_time(lambda: server.ask("inspect", code="area(", cursor=5, detail_level=1))
    assert (found["found"], found["status"]) == (True, "ok")
    assert "Of a circle." in found["data"]["text/plain"]
    assert "    return r" in found["data"]["text/plain"]
    nothing = {"status": "ok", "found": False, "data": {}, "metadata": {}}
    assert server.ask("inspect", code="", cursor=0) == nothing
    outcome = server.ask("execute", code="x = 1")
    assert outcome["debug_info"]["added_imports"] == []
    assert [line["seq"] for line in server.log_lines()] == [1, 2]


@both_routes
def test_completion_during_an_execution_is_refused_as_busy(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="print(1, flush=True)\nimport time\ntime.sleep(60)", stream=True)
    assert server.read()["method"] == "stream"
    for method in ("complete", "inspect"):
        server.send(method, 2, code="x", cursor=1)
        [reply] = server.read_reply_of(2)
        assert reply["error"]["code"] == -32000
        assert f"ask for {method} when it is answered" in reply["error"]["message"]
    server.send("interrupt")
    assert server.read_reply_of(1)[0]["result"]["debug_info"]["execution"] == "interrupted"
    assert in_time(lambda: server.ask("complete", code="prin", cursor=4))["matches"] == ["print"]


@pytest.mark.slow
@both_routes
def test_ten_thousand_large_pipelined_requests_wait_in_bounded_memory(
    start_server: Start, route: str
) -> None:
    server = start_server(route)
    count, padding = 10_000, "#" * 30_000  # 300 MB in all
    pid = os.fork()
    if pid == 0:
        for n in range(count):
            line = json.dumps(
                {"jsonrpc": "2.0", "id": n, "method": "execute", "params": {"code": f"{n} {padding}"}}
            )
            server.send_raw(line.encode() + b"\n")
        os._exit(0)
    for n in range(count):
        assert server.read()["id"] == n
    os.waitpid(pid, 0)
    assert _peak_rss_mb(server.process.pid) < 300
    assert len(server.log_lines()) == count


@both_routes
def test_the_end_of_input_finishes_all_that_was_sent(start_server: Start, route: str) -> None:
    server = start_server(route)
    for n in range(5):
        server.send("execute", n, code=f"import time; time.sleep(0.05); {n}")
    server.send_raw(b'{"jsonrpc":"2.0","id":"unended","method":"execute","params":{"code":"6"}}')
    server.close_input()
    assert [reply["id"] for reply in server.read_all()] == [0, 1, 2, 3, 4, "unended"]
    assert server.wait() == 0
    assert len(server.log_lines()) == 6


@both_routes
def test_shutdown_answers_what_was_sent_before_it_and_refuses_the_rest(
    start_server: Start, route: str
) -> None:
    server = start_server(route)
    requests = [
        ("execute", 1, {"code": "import time; time.sleep(0.2)"}),
        ("shutdown", 2, {}),
        ("execute", 3, {"code": "1"}),
    ]
    lines = [json.dumps({"jsonrpc": "2.0", "id": i, "method": m, "params": p}) + "\n" for m, i, p in requests]
    server.send_raw("".join(lines).encode())
    replies = server.read_all()
    assert [reply["id"] for reply in replies] == [1, 2, 3]
    assert replies[1]["result"] == {}
    assert replies[2]["error"]["code"] == -32001
    assert server.wait() == 0
    assert len(server.log_lines()) == 1


@both_routes
def test_a_client_that_is_gone_does_not_stop_the_work(start_server: Start, route: str) -> None:
    server = start_server(route)
    for n in range(3):
        server.send("execute", n, code="import time; time.sleep(0.1); print('x' * 100_000)", stream=True)
    server.process.stdout.close()
    server.close_input()
    assert server.wait() == 0
    assert server.stderr() == ""
    assert [line["status"] for line in server.log_lines()] == ["ok"] * 3


@both_routes
def test_a_client_that_reads_late_gets_everything(start_server: Start, route: str) -> None:
    server = start_server(route)
    server.send("execute", 1, code="for i in range(20_000): print(i, flush=True)", stream=True)
    time.sleep(1.0)  # the stall itself: nothing is waited for here
    streamed = ""
    while "method" in (message := server.read()):
        streamed += message["params"]["text"]
    expected = "".join(f"{i}\n" for i in range(20_000))
    assert streamed == message["result"]["stdout"] == expected
    assert server.log_lines()[0]["stdout"] == expected


@both_routes
def test_a_client_that_does_not_read_cannot_undo_a_time_limit(
    start_server: Start, wait_until: WaitUntil, route: str
) -> None:
    server = start_server(route)
    code = "while True: print('x' * 1000)"
    server.send("execute", 1, code=code, stream=True, time_limit_s=0.5)
    wait_until(server.log_lines)
    (line,) = server.log_lines()
    assert line["status"] == "timeout"
    while "method" in (message := server.read()):
        pass
    assert message["result"]["debug_info"]["execution"] == "timeout"


@both_routes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_a_signal_to_end_writes_the_running_line_and_refuses_the_waiting(
    start_server: Start, route: str, number: signal.Signals
) -> None:
    server = start_server(route)
    server.send("execute", 1, code="print('on', end='')\nimport time\ntime.sleep(60)", stream=True)
    assert server.read()["method"] == "stream"
    server.send("execute", 2, code="'never'")
    server.ask("ping")
    os.kill(server.process.pid, number)
    replies = {reply["id"]: reply for reply in server.read_all() if "id" in reply}
    assert server.wait() == 0
    assert replies[1]["result"]["debug_info"]["execution"] == "interrupted"
    assert replies[2]["error"]["code"] == -32001
    (line,) = server.log_lines()
    assert (line["status"], line["stdout"]) == ("interrupted", "on")


@both_routes
def test_a_signal_to_end_an_idle_server_ends_it(start_server: Start, route: str) -> None:
    server = start_server(route)
    os.kill(server.process.pid, signal.SIGTERM)
    assert (server.read_all(), server.wait()) == ([], 0)


def test_a_signal_ends_a_server_whose_client_does_not_read(start_server: Start) -> None:
    server = start_server("worker")
    server.send("execute", 1, code="while True: print('x' * 1000)", stream=True)
    server.read()
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.wait() == 0
    assert [line["status"] for line in server.log_lines()] == ["interrupted"]


def test_a_signal_ends_a_server_whose_code_never_comes_back_to_python(start_server: Start) -> None:
    server = start_server("local")
    code = (
        "import ctypes\nmutex = ctypes.create_string_buffer(64)\n"
        "lock = ctypes.CDLL(None).pthread_mutex_lock\nfirst = lock(mutex)\nprint('on', end='')\nlock(mutex)"
    )  # no signal ends that
    server.send("execute", 1, code=code, stream=True)
    assert server.read()["method"] == "stream"
    os.kill(server.process.pid, signal.SIGTERM)
    assert server.wait() == 0


@both_routes
def test_a_fork_of_executed_code_that_is_told_to_end_ends_alone(start_server: Start, route: str) -> None:
    server = start_server(route)
    code = (
        "import multiprocessing, time\n"
        "child = multiprocessing.get_context('fork').Process(target=time.sleep, args=(600,))\n"
        "child.start(); child.terminate(); child.join()\nchild.exitcode"
    )
    assert server.ask("execute", code=code)["result"] == {"text/plain": "-15"}
    assert server.ask("execute", code="1 + 1")["success"]


@both_routes
def test_threads_and_exit_handlers_of_executed_code_cannot_keep_the_process(
    start_server: Start, route: str
) -> None:
    server = start_server(route)
    code = (
        "import atexit, threading, time\nthreading.Thread(target=time.sleep, args=(600,)).start()\n"
        "atexit.register(time.sleep, 600)"
    )
    server.ask("execute", code=code)
    server.close_input()
    assert server.wait() == 0


@both_routes
def test_the_session_killed_leaves_no_process(start_server: Start, wait_until: WaitUntil, route: str) -> None:
    server = start_server(route)
    pid = int(server.ask("execute", code="import os; os.getpid()")["result"]["text/plain"])
    server.process.kill()
    server.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists())


@pytest.mark.parametrize("closed", [0, 1])
def test_a_standard_descriptor_that_is_closed_is_a_clear_error(tmp_path: Path, closed: int) -> None:
    done = subprocess.run(
        ["sh", "-c", f'exec "$0" -m json_repl {closed}{"<" if closed == 0 else ">"}&-', sys.executable],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TASK_LOG_DIR": str(tmp_path)},
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"json-repl: .*\n", done.stderr)


@pytest.mark.parametrize(("name", "value"), [("TASK_LOG_FSYNC", "sometimes"), ("TASK_LOG_KEY", "file:/none")])
def test_a_setting_that_cannot_be_followed_is_one_line_on_stderr(
    tmp_path: Path, name: str, value: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "json_repl"],
        input="",
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"TASK_LOG_DIR": str(tmp_path), name: value},
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"json-repl: .*\n", done.stderr)
    assert name in done.stderr


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lines=st.lists(
        st.binary(max_size=60).map(lambda line: line.replace(b"\n", b""))
        | st.sampled_from(
            [b'{"jsonrpc":"2.0","id":', b'"method":"ping"}', b"[", b"{}", b'{"a":1}{"b":2}', b"\x00"]
        ),
        max_size=8,
    )
)
def test_any_lines_leave_the_server_up_and_each_gets_one_reply(
    fuzzed_server: Any, lines: list[bytes]
) -> None:
    fuzzed_server.send_raw(b"".join(line + b"\n" for line in lines))
    fuzzed_server.send("variables", "fence")
    replies = 0
    while (reply := fuzzed_server.read())["id"] != "fence":
        assert "error" in reply
        replies += 1
    assert replies == sum(bool(line.strip()) for line in lines)


@pytest.fixture
def fuzzed_server(start_server: Start) -> Any:
    return start_server()


def _peak_rss_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+)", status)[1]) / 1024  # type: ignore[index]  # the kernel always says


@pytest.mark.parametrize("route", ["local", "worker"])
def test_ids_and_folders_that_are_not_unicode_are_shown_escaped(tmp_path: Path, route: str) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    env = {**os.environb, b"FLOW_PLAN_ID": b"P-\xff", b"TASK_LOG_DIR": folder}
    env[b"USE_SUBPROCESS_WORKER"] = b"1" if route == "worker" else b"0"
    asked = {"jsonrpc": "2.0", "id": 1, "method": "execute", "params": {"code": "import os; os.environb"}}
    done = subprocess.run(
        [sys.executable, "-m", "json_repl"],
        input=json.dumps(asked).encode(),
        capture_output=True,
        env=env,
        timeout=30,
        check=True,
    )
    ready, reply = map(json.loads, done.stdout.splitlines())
    assert ready["params"]["plan_id"] == "P-\\udcff"
    assert reply["result"]["success"], reply
    assert reply["result"]["debug_info"]["log"]["path"].startswith(f"{tmp_path}/\\udcff/")
    assert "b'P-\\xff'" in reply["result"]["result"]["text/plain"]
