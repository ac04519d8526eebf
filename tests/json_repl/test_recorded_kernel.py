"""The recorded kernel as a front end meets it, and the log that comes of it."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import psutil
import pytest
import zmq

from json_repl import Session
from tests.json_repl.conftest import in_time
from tests.kernel_host import PATIENCE_S, RECORDED, Kernel, running_kernel
from tests.task_logger.log_check import check_log

SCHEMA = json.loads((Path(__file__).parent.parent / "execution.schema.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def kernel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kernel]:
    """One kernel for all tests that leave it alive; its log must be whole then, and follow the schema."""
    folder = tmp_path_factory.mktemp("kernel")
    with running_kernel(folder) as started:
        yield started
        validator = jsonschema.Draft202012Validator(SCHEMA)
        for line in started.lines():
            validator.validate(line)
        for path in (folder / "logs").glob("*/*.jsonl"):
            log = check_log(path)
            assert log.breaks == []
            assert log.unnamed == []


def test_what_a_cell_shows_is_in_its_line(kernel: Kernel) -> None:
    ran = kernel.run(
        """
        import sys
        from IPython.display import HTML, display
        print("out")
        print("err", file=sys.stderr)
        handle = display(HTML("<b>first</b>"), display_id=True)
        handle.update(HTML("<b>second</b>"))
        6 * 7
        """
    )
    line = kernel.line_of(ran)
    assert (line["stdout"], line["stderr"], line["status"]) == ("out\n", "err\n", "ok")
    assert line["result"] == {"text/plain": "42"}
    assert [display["text/html"] for display in line["displays"]] == ["<b>first</b>", "<b>second</b>"]
    assert (line["route"], line["actor"], line["isolation"]) == ("local", "jupyter", "none")
    assert ran.contents("execute_result")[0]["data"] == line["result"]


def test_every_line_is_in_the_log_when_its_reply_comes(kernel: Kernel) -> None:
    for number in range(30):
        msg_id = kernel.client.execute(f"print({number})")
        kernel.reply_of(msg_id)
        assert kernel.lines()[-1]["tags"]["msg_id"] == msg_id
        assert kernel.lines()[-1]["stdout"] == f"{number}\n"


def test_an_error_is_recorded_as_it_is_shown_without_colors(kernel: Kernel) -> None:
    ran = kernel.run("y_of_error = 1\n1 / 0")
    line = kernel.line_of(ran)
    assert line["status"] == "error"
    assert line["error"]["type"] == "ZeroDivisionError"
    assert line["error"]["message"] == "division by zero"
    assert line["error"]["line"] == 2
    assert line["stderr"] == line["error"]["traceback"]
    assert "1 / 0" in line["stderr"]
    assert "\x1b" not in line["stderr"]
    assert "json_repl" not in line["stderr"]
    assert "repl_kernel" not in line["stderr"]
    assert line["added_vars"] == ["y_of_error"]
    assert line["added_imports"] == []


def test_a_traceback_that_is_shown_once_more_is_no_error_of_the_cell(kernel: Kernel) -> None:
    kernel.run("1/0")
    ran = kernel.run("%tb")
    line = kernel.line_of(ran)
    assert (ran.reply["status"], line["status"], line["success"], line["error"]) == ("ok", "ok", True, None)
    assert line["stderr"].endswith("ZeroDivisionError: division by zero\n")


def test_a_display_whose_keys_json_cannot_hold_is_shown_as_by_ipykernel(kernel: Kernel) -> None:
    ran = kernel.run("display({'application/json': {(1, 2): 3}}, raw=True)")
    assert ran.contents("display_data")[0]["data"] == {"application/json": {"(1, 2)": 3}}


def test_code_that_does_not_compile_has_a_line_with_its_place(kernel: Kernel) -> None:
    line = kernel.line_of(kernel.run("ok = 1\nimport = 7q"))
    assert (line["error"]["type"], line["error"]["line"], line["elapsed_ms"]) == ("SyntaxError", 2, 0)


def test_a_magic_that_is_not_there_is_an_error_told_once(kernel: Kernel) -> None:
    kernel.run("1 / 0")
    ran = kernel.run("%no_such_magic")
    line = kernel.line_of(ran)
    assert (line["status"], line["error"]["type"]) == ("error", "UsageError")
    assert line["stderr"] == ran.text("stderr") == line["error"]["traceback"]
    assert "ZeroDivisionError" not in line["stderr"]


def test_the_diff_names_what_the_user_did_and_nothing_of_the_shell(kernel: Kernel) -> None:
    assert kernel.line_of(kernel.run("a_list = [1]\na_number = 1"))["added_vars"] == ["a_list", "a_number"]
    line = kernel.line_of(kernel.run("a_list.append(2)\na_number += 1\nimport colorsys\n42"))
    assert line["added_vars"] == ["colorsys"]
    assert line["added_imports"] == ["colorsys"]
    deadline = time.monotonic() + PATIENCE_S
    while not line["diff_complete"] and time.monotonic() < deadline:  # what changed in place took too long
        line = kernel.line_of(kernel.run("a_list.append(2)\na_number += 1"))
    assert line["changed_vars"] == ["a_list", "a_number"]
    line = kernel.line_of(kernel.run("del a_list, a_number, colorsys"))
    assert line["removed_vars"] == ["a_list", "a_number", "colorsys"]


def test_elapsed_time_is_that_of_the_code_alone(kernel: Kernel) -> None:
    kernel.run("import time")
    line = kernel.line_of(kernel.run("time.sleep(0.05)\nraise ValueError"))
    assert line["elapsed_ms"] >= 50
    kernel.run(
        """
        class Slow(Exception):
            def __str__(self):
                global shown_at
                time.sleep(0.5)
                shown_at = time.monotonic()
                return "slow to show"
        """
    )
    line = kernel.line_of(kernel.run("began_at = time.monotonic()\nraise Slow"))
    (shown_after,) = kernel.run("shown_at - began_at").contents("execute_result")
    assert line["elapsed_ms"] < 1000 * float(shown_after["data"]["text/plain"])
    kernel.run("del Slow, began_at, shown_at")


def test_silent_and_unstored_requests_have_lines_that_say_so(kernel: Kernel) -> None:
    silent = kernel.client.execute("silent_name = 1", silent=True)
    kernel.reply_of(silent)
    (line,) = [line for line in kernel.lines() if line["tags"]["msg_id"] == silent]
    assert line["tags"]["silent"] is True
    assert line["added_vars"] == ["silent_name"]
    line = kernel.line_of(kernel.run("1", store_history=False, user_expressions={"e": "2 + 2"}))
    assert line["tags"]["store_history"] is False
    assert line["tags"]["user_expressions"] == {"e": "2 + 2"}
    assert "silent" not in line["tags"]


def test_two_clients_of_one_kernel_are_told_apart(kernel: Kernel) -> None:
    other = kernel.manager.blocking_client()
    other.session.session = "another-client"
    other.start_channels()
    try:
        other.wait_for_ready(timeout=PATIENCE_S)
        both = [kernel.run("'mine'"), Kernel(kernel.manager, other, kernel.log_root).run("'theirs'")]
    finally:
        other.stop_channels()
    mine, theirs = (kernel.line_of(ran) for ran in both)
    assert mine["tags"]["client_session_id"] == kernel.client.session.session
    assert theirs["tags"]["client_session_id"] == "another-client"
    assert mine["session_id"] == theirs["session_id"]
    assert theirs["seq"] == mine["seq"] + 1


def test_what_a_thread_prints_later_is_filed_under_the_cell_that_started_it(kernel: Kernel) -> None:
    origin = kernel.line_of(
        kernel.run(
            """
            import threading
            may_print, has_printed = threading.Event(), threading.Event()
            def late():
                may_print.wait()
                print("late")
                has_printed.set()
            threading.Thread(target=late).start()
            """
        )
    )
    during = kernel.line_of(kernel.run("may_print.set()\nhas_printed.wait()\nprint('now')"))
    assert during["stdout"] == "now\n"
    assert during["late_output"] == [{"name": "stdout", "text": "late\n", "seq": origin["seq"]}]


def test_a_thread_that_works_for_a_later_cell_is_of_that_cell(kernel: Kernel) -> None:
    kernel.run(
        "import asyncio\nfrom IPython.display import HTML, display\nawait asyncio.to_thread(print, 'one')"
    )
    line = kernel.line_of(
        kernel.run("await asyncio.to_thread(print, 'two')\nawait asyncio.to_thread(display, HTML('<p>'))")
    )
    assert line["stdout"] == "two\n"
    assert [display["text/html"] for display in line["displays"]] == ["<p>"]
    assert "late_output" not in line


def test_what_a_task_shows_after_its_cell_is_late_output_of_that_cell(kernel: Kernel) -> None:
    origin = kernel.line_of(
        kernel.run(
            """
            import asyncio
            from IPython.display import HTML, display
            go_on = asyncio.Event()
            async def later():
                await go_on.wait()
                print("of the task")
                display(HTML("<i>x</i>"))
            task = asyncio.create_task(later())
            """
        )
    )
    line = kernel.line_of(kernel.run("go_on.set()\nawait task\nprint('of the cell')"))
    assert line["stdout"] == "of the cell\n"
    text = "".join(late["text"] for late in line["late_output"])
    assert text == "of the task\n<IPython.core.display.HTML object>\n"
    assert {late["seq"] for late in line["late_output"]} == {origin["seq"]}
    assert "displays" not in line


def test_what_programs_and_c_code_write_is_in_the_line_of_their_cell(kernel: Kernel) -> None:
    code = "import os\nos.system('echo from a program; echo error >&2')\nos.write(1, b'by descriptor\\n');"
    line = kernel.line_of(kernel.run(code))
    assert line["stdout"] == "from a program\nby descriptor\n"
    assert line["stderr"] == "error\n"
    assert "stdout" not in line.get("lossy", [])


def test_bytes_that_are_no_text_are_kept_exactly(kernel: Kernel) -> None:
    ran = kernel.run("import os\nfor byte in range(256):\n    os.write(1, bytes([byte]))")
    line = kernel.line_of(ran)
    assert line["lossy"] == ["stdout"]
    (artifact,) = line["artifacts"]
    path = kernel.log_root / "local" / "artifacts" / artifact["sha256"][:2] / artifact["sha256"]
    assert path.read_bytes() == bytes(range(256))
    assert "\ufffd" in ran.text()


def test_characters_that_arrive_in_pieces_stay_whole(kernel: Kernel) -> None:
    text = "ä€😀" * 20_000
    ran = kernel.run("import os\nsize = os.write(1, ('ä€😀' * 20_000).encode()) and None")
    assert kernel.line_of(ran)["stdout"] == text[: len(kernel.line_of(ran)["stdout"])]
    assert kernel.line_of(ran)["stdout"] == ran.text()
    assert "\ufffd" not in ran.text()


def test_what_forked_children_print_is_recorded(kernel: Kernel) -> None:
    kernel.run(
        """
        import multiprocessing
        child = multiprocessing.get_context("fork").Process(target=lambda: print("from a child"))
        child.start()
        child.join()
        """
    )
    kernel.run("pass")
    *_, before, last = kernel.lines()
    late = "".join(late["text"] for late in last.get("late_output", []))
    assert before["stdout"] + late == "from a child\n"


def test_a_fork_that_runs_off_the_end_of_its_cell_writes_no_line(kernel: Kernel) -> None:
    # It comes back into the kernel's own code, and ends where it is told to by a callback of the shell.
    kernel.run(
        """
        import os
        kernel_pid = os.getpid()
        def end_fork(*_):
            if os.getpid() != kernel_pid:
                shell = get_ipython()
                shell.kernel.replied({"status": "ok"}, shell.parent_header["header"]["msg_id"])
                os._exit(0)
        get_ipython().events.register("post_run_cell", end_fork)
        """
    )
    ran = kernel.run("child = os.fork()\nif child:\n    os.waitpid(child, 0)")
    assert kernel.line_of(ran)["status"] == "ok"
    kernel.run("get_ipython().events.unregister('post_run_cell', end_fork)")


def test_magics_and_shell_lines_are_recorded_as_they_were_typed(kernel: Kernel) -> None:
    assert kernel.line_of(kernel.run("%%bash\necho hi"))["stdout"] == "hi\n"
    line = kernel.line_of(kernel.run("!echo ho"))
    assert (line["code"], line["stdout"].split()) == ("!echo ho", ["ho"])
    timed = kernel.line_of(kernel.run("%timeit -n1 -r1 pass"))
    assert "per loop" in timed["stdout"]


def test_a_cell_that_awaits_is_recorded(kernel: Kernel) -> None:
    line = kernel.line_of(kernel.run("import asyncio\nawait asyncio.sleep(0.02)\nprint('awaited')\n'value'"))
    assert line["stdout"] == "awaited\n"
    assert line["result"] == {"text/plain": "'value'"}
    assert line["elapsed_ms"] >= 20


def test_images_too_large_for_a_line_become_artifacts(kernel: Kernel) -> None:
    ran = kernel.run(
        "import os\nfrom IPython.display import Image, display\n"
        "display(Image(os.urandom(2_000_000), format='png'))"
    )
    line = kernel.line_of(ran)
    (artifact,) = line["artifacts"]
    assert artifact["field"] == "displays.0.image/png"
    path = kernel.log_root / "local" / "artifacts" / artifact["sha256"][:2] / artifact["sha256"]
    shown = ran.contents("display_data")[0]["data"]["image/png"]
    assert base64.b64decode(path.read_bytes()) == base64.b64decode(shown)


def test_lone_surrogates_are_shown_and_recorded(kernel: Kernel) -> None:
    ran = kernel.run(r"raise Exception('\ud8ff')")
    assert ran.reply["status"] == "error"
    assert ran.contents("error")[0]["evalue"] == r"\ud8ff"
    line = kernel.line_of(ran)
    assert (line["error"]["type"], line["error"]["message"]) == ("Exception", r"\ud8ff")
    assert "error.message" in line["lossy"]
    ran = kernel.run(r"print('\ud800', '\udcff')")
    assert ran.text() == "\\ud800 \\udcff\n"
    line = kernel.line_of(ran)
    assert line["stdout"] == "\\ud800 \\udcff\n"
    assert line["lossy"] == ["stdout"]


@pytest.mark.parametrize("content", [{}, {"code": 5}, {"code": None, "silent": True}])
def test_a_request_that_cannot_be_run_is_answered_and_runs_nothing(kernel: Kernel, content: Any) -> None:
    count = len(kernel.lines())
    ran = kernel.wait_for(kernel.send("execute_request", content))
    assert ran.reply["status"] == "error"
    assert ran.reply["ename"] == "InvalidRequest"
    assert "code" in ran.reply["evalue"]
    assert kernel.run("1").reply["status"] == "ok"
    assert len(kernel.lines()) == count + 1


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        ("execute_request", {"code": "made = 1", "user_expressions": 5}),
        ("execute_request", {"code": "made = 1", "allow_stdin": "yes"}),
        ("complete_request", {}),
        ("complete_request", {"code": "a", "cursor_pos": 9}),
        ("inspect_request", {"code": "a", "cursor_pos": None}),
        ("history_request", {}),
        ("is_complete_request", {"code": None}),
    ],
)
def test_a_request_that_makes_no_sense_is_answered(kernel: Kernel, kind: str, content: Any) -> None:
    count = len(kernel.lines())
    # Until it is idle: a kernel aborts what comes right behind the reply with an error, as ipykernel does.
    reply = kernel.wait_for(kernel.send(kind, content)).reply
    assert (reply["status"], reply["ename"]) == ("error", "InvalidRequest")
    assert len(kernel.lines()) == count


def test_the_line_of_a_cell_that_the_kernel_fails_at_says_why(kernel: Kernel) -> None:
    kernel.run(
        """
        import sys
        class FailsOnce:
            kept = sys.stdout
            def flush(self): pass
            @property
            def write(self):
                sys.stdout = self.kept
                raise AttributeError('nothing to write with')
        sys.stdout = FailsOnce()
        """
    )
    ran = kernel.run("1 + 1")
    assert "nothing to write with" in ran.reply["evalue"]
    line = kernel.line_of(ran)
    assert (line["status"], line["error"]["type"]) == ("error", "AttributeError")
    assert line["stderr"] == "AttributeError: nothing to write with\n"


def test_interrupting_a_cell_is_recorded_and_the_kernel_goes_on(kernel: Kernel) -> None:
    for code in (
        "import time\nprint('started', flush=True)\ntime.sleep(600)",
        "import asyncio\nprint('started', flush=True)\nawait asyncio.sleep(600)",
    ):
        msg_id = kernel.client.execute(code)
        kernel.wait_for_text(msg_id, "started\n")
        kernel.manager.interrupt_kernel()
        ran = kernel.wait_for(msg_id)
        assert ran.reply["status"] == "error"
        line = kernel.line_of(ran)
        assert (line["status"], line["stdout"]) == ("interrupted", "started\n")
    line = kernel.line_of(kernel.run("raise KeyboardInterrupt"))
    assert line["status"] == "error"


def test_input_asks_the_front_end_and_gets_its_answer(kernel: Kernel) -> None:
    msg_id = kernel.client.execute("import getpass\nname = input('who? ')\nsecret = getpass.getpass('pin? ')")
    for prompt, is_password, answer in (("who? ", False, "Ada"), ("pin? ", True, "1234")):
        asked = kernel.client.get_stdin_msg(timeout=PATIENCE_S)["content"]
        assert (asked["prompt"], asked["password"]) == (prompt, is_password)
        kernel.client.input(answer)
    assert kernel.wait_for(msg_id).reply["status"] == "ok"
    assert kernel.run("name, secret").contents("execute_result")[0]["data"]["text/plain"] == "('Ada', '1234')"


def test_input_without_a_front_end_that_answers_is_an_error(kernel: Kernel) -> None:
    ran = kernel.run("input()", allow_stdin=False)
    assert ran.reply["ename"] == "StdinNotImplementedError"
    assert kernel.line_of(ran)["error"]["type"] == "StdinNotImplementedError"


def test_executions_that_overlap_say_so(kernel: Kernel) -> None:
    subshell = kernel.control("create_subshell_request", {})["subshell_id"]
    content = {"code": "import threading\nis_there = threading.Event()\nmay_end = threading.Event()"}
    kernel.wait_for(kernel.send("execute_request", content))
    outer = kernel.send("execute_request", {"code": "is_there.set()\nmay_end.wait()\nprint('outer')"})
    inner = kernel.send(
        "execute_request",
        {"code": "is_there.wait()\nof_inner = 1\nprint('inner')"},
        subshell_id=subshell,
    )
    kernel.reply_of(inner)
    release = kernel.send("execute_request", {"code": "may_end.set()"}, subshell_id=subshell)
    replied = {kernel.client.get_shell_msg(timeout=PATIENCE_S)["parent_header"]["msg_id"] for _ in range(2)}
    assert replied == {outer, release}
    lines = {line["tags"]["msg_id"]: line for line in kernel.lines()}
    assert lines[inner]["stdout"] == "inner\n"
    assert lines[outer]["stdout"] == "outer\n"
    assert lines[inner]["tags"]["subshell_id"] == subshell
    assert lines[inner]["tags"]["overlaps"] == [lines[outer]["seq"]]
    assert lines[outer]["tags"]["overlaps"] == [lines[inner]["seq"], lines[release]["seq"]]
    assert not any(lines[msg_id]["diff_complete"] for msg_id in (outer, inner, release))
    kernel.control("delete_subshell_request", {"subshell_id": subshell})
    assert "overlaps" not in kernel.line_of(kernel.run("1"))["tags"]


def test_comms_work_and_what_their_callbacks_print_belongs_to_no_cell(kernel: Kernel) -> None:
    kernel.run(
        """
        def answer(comm, message):
            print("in a callback")
            comm.send({"got": message["content"]["data"]})
        get_ipython().kernel.comm_manager.register_target("answering", answer)
        """
    )
    content = {"comm_id": "c-1", "target_name": "answering", "data": {"n": 7}}
    msg_id = kernel.send("comm_open", content)
    while (message := kernel.client.get_iopub_msg(timeout=PATIENCE_S))["msg_type"] != "comm_msg":
        pass
    assert message["content"]["data"] == {"got": {"n": 7}}
    assert message["parent_header"]["msg_id"] == msg_id
    line = kernel.line_of(kernel.run("del answer"))
    assert line["late_output"] == [{"name": "stdout", "text": "in a callback\n", "seq": None}]


def test_messages_that_are_not_the_clients_are_refused_and_counted(kernel: Kernel) -> None:
    session = kernel.client.session
    channel = kernel.client.shell_channel.socket
    request = {"code": "must_not_be = 1", "silent": False}
    frames = session.serialize(session.msg("execute_request", request))
    unsigned, forged = list(frames), list(frames)
    unsigned[1], forged[1] = b"", b"0" * 64
    for wrong in (unsigned, forged):
        channel.send_multipart(wrong)
    once = session.msg("execute_request", {"code": "counted = 'once'"})
    sent_before = session.serialize(once)
    channel.send_multipart(sent_before)
    kernel.reply_of(once["msg_id"])
    channel.send_multipart(sent_before)
    line = kernel.line_of(kernel.run("'must_not_be' in globals()"))
    before, after = (one["tags"].get("refused_messages") for one in kernel.lines()[-2:])
    assert before == {"unsigned": 1, "wrong_signature": 1}
    assert after == {"replayed": 1}
    assert line["result"] == {"text/plain": "False"}
    assert sum(line["code"] == "counted = 'once'" for line in kernel.lines()) == 1
    assert "refused_messages" not in kernel.line_of(kernel.run("1"))["tags"]


def test_an_oversize_message_is_refused_and_counted(tmp_path: Path) -> None:
    with running_kernel(tmp_path, (*RECORDED, "--RecordedSession.max_message_bytes=100000")) as kernel:
        kernel.send("execute_request", {"code": f"big = '{'x' * 100_000}'"})
        line = kernel.line_of(kernel.run("'big' in globals()"))
        assert line["result"] == {"text/plain": "False"}
        assert line["tags"]["refused_messages"] == {"oversize": 1}


def test_no_history_of_ipythons_own_is_on_the_disk(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        kernel.run("secret = 'of this test'")
        assert kernel.run("%history -n").text().startswith("   1: secret")
    for path in (tmp_path / "ipython").rglob("*"):
        assert not path.is_file() or b"of this test" not in path.read_bytes()
    assert not list(tmp_path.rglob("*.sqlite*"))


def test_a_kernel_that_dies_in_a_cell_leaves_a_line_to_the_next_writer(
    tmp_path: Path, wait_until: Callable[[Callable[[], object]], None]
) -> None:
    with running_kernel(tmp_path) as kernel:
        kernel.run("x = 1")
        kernel.client.execute("import os; os._exit(7)")
        wait_until(lambda: not kernel.manager.is_alive())
        with Session(route="local", log_dir=kernel.log_root) as session:
            session.execute_code("after")
        before, died, _ = kernel.lines()
        assert (before["status"], died["status"]) == ("ok", "unknown")
        assert died["code"] == "import os; os._exit(7)"
        assert (died["actor"], died["seq"], died["session_id"]) == ("jupyter", 2, before["session_id"])


@pytest.mark.slow
def test_output_that_no_front_end_takes_is_all_in_the_log(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        stalled = kernel.client.context.socket(zmq.SUB)
        stalled.rcvhwm = 1
        stalled.subscribe(b"")
        stalled.connect(kernel.manager._make_url("iopub"))
        process = psutil.Process(kernel.manager.provisioner.pid)
        kernel.run("pass")
        before_bytes = process.memory_info().rss
        msg_id = kernel.client.execute("for i in range(50_000):\n    print(f'line {i}', flush=True)")
        kernel.reply_of(msg_id)  # and nothing is read from IOPub all this time
        (line,) = [line for line in kernel.lines() if line["tags"]["msg_id"] == msg_id]
        assert line["stdout"] == "".join(f"line {i}\n" for i in range(50_000))
        assert process.memory_info().rss - before_bytes < 100 << 20
        stalled.close(linger=0)


def test_a_log_that_cannot_be_written_stops_no_cell_and_is_named_once(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        kernel.run("print(0)")
        (log,) = kernel.log_root.glob("*/*.jsonl")
        log.rename(tmp_path / "moved.jsonl")
        log.mkdir()
        first, second = kernel.run("print(1)"), kernel.run("print(2)")
        assert (first.reply["status"], first.text(), second.text()) == ("ok", "1\n", "2\n")
        assert first.text("stderr").startswith("json_repl: ")
        assert str(log) in first.text("stderr")
        assert second.text("stderr") == ""
        log.rmdir()
        assert "can be written again" in kernel.run("print(3)").text("stderr")
        assert kernel.run("print(4)").text("stderr") == ""
        assert [line["stdout"] for line in kernel.lines()] == ["1\n", "2\n", "3\n", "4\n"]


def test_where_no_log_can_be_every_cell_says_why_and_nothing_runs(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("in the way of the folder")
    with running_kernel(tmp_path) as kernel:
        ran = kernel.run("print('ran')")
        assert (ran.reply["status"], ran.reply["ename"], ran.text()) == ("error", "NotRecorded", "")
        assert str(tmp_path / "logs") in ran.contents("error")[0]["evalue"]


def test_nothing_runs_unrecorded_where_that_is_asked_for(tmp_path: Path) -> None:
    with running_kernel(tmp_path, TASK_LOG_STRICT="1") as kernel:
        kernel.run("print(0)")
        (log,) = kernel.log_root.glob("*/*.jsonl")
        log.unlink()
        ran = kernel.run("print('ran')")
        assert (ran.reply["status"], ran.reply["ename"], ran.text()) == ("error", "NotRecorded", "")
        assert "nothing has run" in ran.contents("error")[0]["evalue"]


def test_a_setting_that_makes_no_sense_is_told_in_every_cell(tmp_path: Path) -> None:
    with running_kernel(tmp_path, TASK_LOG_FSYNC="sometimes") as kernel:
        for _ in range(2):
            ran = kernel.run("print('ran')")
            assert (ran.reply["ename"], ran.text()) == ("NotRecorded", "")
            assert "TASK_LOG_FSYNC" in ran.reply["evalue"]


def test_plan_and_task_come_from_the_notebook_where_the_environment_says_nothing(tmp_path: Path) -> None:
    notebook = tmp_path / "My analysis.ipynb"
    flow = {"plan_id": "P-9", "task_id": "T-4"}
    notebook.write_text(json.dumps({"metadata": {"flow": flow}, "cells": []}), encoding="utf-8")
    with running_kernel(tmp_path, JPY_SESSION_NAME=str(notebook), FLOW_TASK_ID="T-5") as kernel:
        line = kernel.line_of(kernel.run("1"))
    assert (line["plan_id"], line["task_id"], line["task_name"]) == ("P-9", "T-5", "My analysis")
    assert (kernel.log_root / "P-9" / "5.My_analysis.jsonl").exists()


def test_a_kernel_that_is_told_to_end_in_a_cell_leaves_a_line_and_nothing_pending(tmp_path: Path) -> None:
    with running_kernel(tmp_path) as kernel:
        msg_id = kernel.client.execute("import time\nprint('started', flush=True)\ntime.sleep(600)")
        kernel.wait_for_text(msg_id, "started\n")
        kernel.manager.shutdown_kernel()
        (line,) = [line for line in kernel.lines() if line["tags"]["msg_id"] == msg_id]
        assert (line["status"], line["stdout"]) == ("interrupted", "started\n")
        assert list((kernel.log_root / "local" / "pending").iterdir()) == []


def test_completion_and_inspection_answer_whatever_an_object_does(kernel: Kernel) -> None:
    kernel.run(
        """
        import time
        class Hanging:
            def __dir__(self):
                time.sleep(600)
            def __getattr__(self, name):
                time.sleep(600)
        hanging, fine = Hanging(), "text"
        """
    )
    assert kernel.reply_of(kernel.client.complete("hanging."))["status"] == "ok"
    reply = in_time(lambda: kernel.reply_of(kernel.client.complete("fine.upp")))
    assert (reply["status"], reply["matches"]) == ("ok", ["upper"])
    assert kernel.reply_of(kernel.client.inspect("hanging.x"))["status"] == "ok"
    assert in_time(lambda: kernel.reply_of(kernel.client.inspect("fine")))["found"]
    assert kernel.run("del hanging, Hanging, fine").reply["status"] == "ok"
