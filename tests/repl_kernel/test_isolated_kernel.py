"""The isolated kernel, as a front end sees it: a real kernel process, its worker, and its log."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import jupyter_kernel_test
import orjson
import psutil
import pytest

from tests.repl_kernel.isolated_kernel_host import (
    KERNEL_NAME,
    PATIENCE_S,
    IsolatedKernelHost,
    log_lines,
    registered,
)

SCHEMA = orjson.loads((Path(__file__).parent.parent / "execution.schema.json").read_bytes())


@pytest.fixture(scope="module")
def log_dir(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("log")
    with registered(tmp_path_factory.mktemp("jupyter"), folder):
        yield folder


@pytest.fixture(scope="module")
def shared_kernel(log_dir: Path) -> Iterator[IsolatedKernelHost]:
    host = IsolatedKernelHost()
    yield host
    host.close()


@pytest.fixture
def kernel(shared_kernel: IsolatedKernelHost) -> IsolatedKernelHost:
    return shared_kernel


@pytest.mark.usefixtures("log_dir")
class TestConformance(jupyter_kernel_test.KernelTests):  # type: ignore[misc]
    """What jupyter_kernel_test asks of any kernel, with the samples that ipykernel is tested with."""

    kernel_name = KERNEL_NAME
    language_name = "python"
    file_extension = ".py"
    code_hello_world = "print('hello, world')"
    code_stderr = "import sys; print('test', file=sys.stderr)"
    completion_samples = (
        {"text": "zi", "matches": {"zip"}},
        {"text": "imp", "matches": {"import"}},
    )
    complete_code_samples = ("1", "print('hello, world')", "def f(x):\n  return x*2\n\n\n")
    incomplete_code_samples = ("print('''hello", "def f(x):\n  x*2")
    invalid_code_samples = ("import = 7q",)
    code_page_something = "zip?"
    code_generate_error = "raise"
    code_execute_result = (
        {"code": "1+2+3", "result": "6"},
        {"code": "[n*n for n in range(1, 4)]", "result": "[1, 4, 9]"},
    )
    code_display_data = (
        {"code": "from IPython.display import HTML, display; display(HTML('<b>x</b>'))", "mime": "text/html"},
        {
            "code": "from IPython.display import Math, display; display(Math('\\\\frac{1}{2}'))",
            "mime": "text/latex",
        },
    )
    code_history_pattern = "1?2*"
    supported_history_operations = ("tail", "search", "range")
    code_inspect_sample = "zip"
    code_clear_output = "from IPython.display import clear_output; clear_output()"

    @classmethod
    def setUpClass(cls) -> None:
        cls.host = IsolatedKernelHost()
        cls.km, cls.kc = cls.host.manager, cls.host.client
        # Theirs gives up on a message after 0.1 s, and takes a kernel that says nothing for so long for idle.
        channel = cls.kc.iopub_channel
        channel.get_msg = partial(_get_message, channel.get_msg)

    @classmethod
    def tearDownClass(cls) -> None:
        cls.host.close()

    def flush_channels(self) -> None:
        """See `KernelTests`: what is left of earlier requests ends where that of another one does."""
        self.host.gather(self.kc.kernel_info())


def _get_message(get_message: Callable[..., Any], timeout: float | None = None) -> Any:
    """One of a kernel on a busy machine."""
    return get_message(timeout=PATIENCE_S)


def test_a_cell_is_numbered_as_its_line_is_and_shows_its_value(
    kernel: IsolatedKernelHost, log_dir: Path
) -> None:
    cell = kernel.run("from IPython.display import HTML\nHTML('<i>value</i>')")
    (result,) = cell.of("execute_result")
    line = log_lines(log_dir)[-1]
    assert result["data"]["text/html"] == "<i>value</i>" == line["result"]["text/html"]
    assert result["execution_count"] == cell.reply["execution_count"] == line["seq"]
    assert (line["route"], line["actor"], line["isolation"]) == ("worker", "jupyter", "process")
    assert line["tags"]["client_session_id"] == kernel.client.session.session
    jsonschema.validate(line, SCHEMA)


def test_what_is_displayed_comes_at_once_and_is_recorded_in_order(
    kernel: IsolatedKernelHost, log_dir: Path, tmp_path: Path
) -> None:
    seen = tmp_path / "seen"

    def on_message(kind: str, _: dict[str, Any]) -> None:
        if kind == "display_data":
            seen.touch()

    cell = kernel.run(
        "import os, time\nprint('before')\nh = display({'text/plain': 'first'}, raw=True, display_id='d')\n"
        f"until = time.monotonic() + {PATIENCE_S / 2}\n"
        f"while not os.path.exists({str(seen)!r}) and time.monotonic() < until: time.sleep(0.001)\n"
        f"print('seen', os.path.exists({str(seen)!r}))\n"
        "h.update({'text/plain': 'second'}, raw=True)\nprint('after')",
        on_message=on_message,
    )
    assert [kind for kind in cell.shown if kind != "stream"] == ["display_data", "update_display_data"]
    assert cell.of("display_data")[0]["transient"] == {"display_id": "d"}
    shown = [
        content.get("text") or content["data"]["text/plain"]
        for kind, content in cell.messages
        if kind in cell.shown
    ]
    assert "".join(shown).split() == ["before", "firstseen", "True", "secondafter"]
    assert log_lines(log_dir)[-1]["displays"] == [{"text/plain": "first"}, {"text/plain": "second"}]


def test_output_that_is_written_in_pieces_comes_together(kernel: IsolatedKernelHost) -> None:
    cell = kernel.run("for i in range(500): print(i)\nimport sys\nprint('wrong', file=sys.stderr)")
    assert cell.stream("stdout") == "".join(f"{i}\n" for i in range(500))
    assert cell.stream("stderr") == "wrong\n"
    assert len(cell.shown) < 500  # written in 1,002 pieces
    assert kernel.run("print('no end', end='')").stream("stdout") == "no end"


def test_matplotlib_draws_inline(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    cell = kernel.run("%matplotlib inline\nimport matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);")
    (figure,) = cell.of("display_data")
    assert figure["data"]["image/png"].startswith("iVBORw0KGgo")
    assert log_lines(log_dir)[-1]["displays"][0]["image/png"] == figure["data"]["image/png"]


def test_magics_programs_and_help_work_as_in_a_notebook(kernel: IsolatedKernelHost) -> None:
    assert kernel.run("!echo from a program").stream("stdout") == "from a program\n"
    assert (
        kernel.run("lines = !echo one; echo two\nlines[1]").of("execute_result")[0]["data"]["text/plain"]
        == "'two'"
    )
    assert "loop" in kernel.run("%timeit -n 1 -r 1 pass").stream("stdout")
    assert kernel.run("%%bash\necho from bash").stream("stdout") == "from bash\n"
    assert kernel.run("%snapshots?").reply["payload"][0]["source"] == "page"
    assert kernel.run("%no_such_magic").reply["ename"] == "UsageError"


def test_top_level_await_works(kernel: IsolatedKernelHost) -> None:
    cell = kernel.run("import asyncio\nawait asyncio.sleep(0, 'awaited')")
    assert cell.of("execute_result")[0]["data"]["text/plain"] == "'awaited'"


def test_input_and_getpass_ask_the_front_end(kernel: IsolatedKernelHost) -> None:
    cell = kernel.run("import getpass\n(input('name? '), getpass.getpass('secret? '))", answers=["Ada", "s3"])
    assert cell.of("execute_result")[0]["data"]["text/plain"] == "('Ada', 's3')"
    assert [(prompt["prompt"], prompt["password"]) for prompt in cell.prompts] == [
        ("name? ", False),
        ("secret? ", True),
    ]
    assert kernel.run("input()").reply["ename"] == "EOFError"


@pytest.mark.parametrize("by_message", [False, True], ids=["by signal", "by message"])
@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nprint(1)\nawait asyncio.sleep(60)",
        "print(1)\nwhile True: pass",
        "import time\nprint(1)\ntime.sleep(60)",
    ],
    ids=["await", "loop", "sleep"],
)
def test_an_interrupt_ends_the_cell_and_keeps_the_variables(
    kernel: IsolatedKernelHost, log_dir: Path, code: str, by_message: bool
) -> None:
    kernel.run("kept = 'kept'")
    begun = threading.Event()

    def interrupt(kind: str, _: dict[str, Any]) -> None:
        if kind == "stream" and not begun.is_set():  # a second one could come when this cell has ended
            begun.set()
            _interrupt(kernel, by_message)

    cell = kernel.run(code, on_message=interrupt)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert log_lines(log_dir)[-1]["status"] == "interrupted"
    assert kernel.run("kept").of("execute_result")[0]["data"]["text/plain"] == "'kept'"


def _interrupt(kernel: IsolatedKernelHost, by_message: bool) -> None:
    if by_message:
        session = kernel.client.session
        session.send(kernel.client.control_channel.socket, session.msg("interrupt_request", {}))
    else:
        os.kill(kernel.pid, signal.SIGINT)


def test_an_interrupt_ends_the_wait_for_input(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    def interrupt(kind: str, _: dict[str, Any]) -> None:
        if kind == "input_request":
            _interrupt(kernel, by_message=False)

    cell = kernel.run("input('? ')", answers=[], on_message=interrupt)
    assert cell.reply["ename"] == "KeyboardInterrupt"
    assert len(cell.prompts) == 1
    assert log_lines(log_dir)[-1]["status"] == "interrupted"


def test_a_cell_that_kills_its_process_costs_nothing(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    kernel.run("before = [1, 2, 3]")
    before = len(log_lines(log_dir))
    # Sent at once, as "run all cells" does: nothing idles long enough for a snapshot by itself.
    ids = [
        kernel.client.execute(code, stop_on_error=False)
        for code in ("before.append(4)", "import ctypes\nctypes.string_at(0)", "before")
    ]
    _, crash, after = [kernel.gather(msg_id) for msg_id in ids]
    assert crash.reply["ename"] == "WorkerCrashed"
    said = "\n".join(crash.of("error")[0]["traceback"])
    assert "SIGSEGV" in said
    assert "is live" in said
    assert "string_at" in crash.stream("stderr")
    assert "interactiveshell.py" not in crash.stream("stderr")
    assert after.of("execute_result")[0]["data"]["text/plain"] == "[1, 2, 3, 4]"
    statuses = [line["status"] for line in log_lines(log_dir)[before:]]
    assert statuses == ["ok", "crashed", "ok"]
    assert kernel.manager.is_alive()


def test_an_error_aborts_the_cells_that_wait_and_none_that_comes_after(
    kernel: IsolatedKernelHost, tmp_path: Path
) -> None:
    for number in range(10):
        sent = tmp_path / str(number)
        failing = f"import os, time\nwhile not os.path.exists({str(sent)!r}): time.sleep(0.001)\n1 / 0"
        ids = [kernel.client.execute(code) for code in (failing, "2", "3")]
        kernel.sync()
        sent.touch()
        statuses: dict[str, str] = {}
        while not statuses.keys() >= set(ids):
            message = kernel.client.get_shell_msg(timeout=PATIENCE_S)
            statuses[message["parent_header"]["msg_id"]] = message["content"]["status"]
            if message["parent_header"]["msg_id"] == ids[0]:
                ids.append(kernel.client.execute("4"))
        assert [statuses[each] for each in ids] == ["error", "aborted", "aborted", "ok"]


def test_the_first_cell_may_crash(log_dir: Path) -> None:
    host = IsolatedKernelHost()
    try:
        assert host.run("import os\nos._exit(7)").reply["ename"] == "WorkerCrashed"
        assert host.run("1 + 1").of("execute_result")[0]["data"]["text/plain"] == "2"
    finally:
        host.close()


def test_rewind_goes_back_to_the_state_after_a_cell(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    seq = kernel.run("value = 1").reply["execution_count"]
    kernel.run("value = 2\nlater = True")
    rewound = kernel.run(f"%rewind {seq}  # back")
    assert rewound.reply["status"] == "ok"
    assert rewound.reply["execution_count"] == seq + 2
    assert f"cell {seq}" in rewound.stream("stdout")
    assert kernel.run("value, 'later' in dir()").of("execute_result")[0]["data"]["text/plain"] == "(1, False)"
    line, after = log_lines(log_dir)[-2:]
    assert line["code"] == f"%rewind {seq}  # back"
    assert line["parent"] == after["parent"] == f"{line['session_id']}:{seq}"


def test_a_wrong_rewind_is_one_clear_error_and_changes_nothing(kernel: IsolatedKernelHost) -> None:
    kernel.run("here = True")
    gone = kernel.run("%rewind 99999")
    assert gone.reply["ename"] == "SnapshotGone"
    assert "nearest that is kept" in gone.reply["evalue"]
    for wrong in ("nowhere", "9" * 5000):
        assert kernel.run(f"%rewind {wrong}").reply["ename"] == "CommandRefused"
    assert "alone in its cell" in kernel.run("x = 1\n%rewind 1").reply["evalue"]
    assert kernel.run("here").of("execute_result")[0]["data"]["text/plain"] == "True"


def test_snapshots_and_tasklog_tell_what_there_is(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    seq = kernel.run("x = 1").reply["execution_count"]
    kernel.run("x")
    assert f"\n{seq:>6}  " in kernel.run("%snapshots").stream("stdout")
    said = kernel.run("%tasklog").stream("stdout")
    assert str(log_dir / "P-1" / "7.kernel.jsonl") in said
    assert log_lines(log_dir)[-2]["hash"] in said


def test_branch_goes_on_in_another_session_and_back(log_dir: Path) -> None:
    host = IsolatedKernelHost()
    try:
        host.run("x = 1")
        host.run("x = 2")
        said = host.run("%branch 1").stream("stdout")
        old, new = (log_lines(log_dir)[-1]["session_id"], said.split()[4])
        assert old in said
        branched = host.run("x")
        assert branched.reply["execution_count"] == 1
        assert branched.of("execute_result")[0]["data"]["text/plain"] == "1"
        assert log_lines(log_dir)[-1]["session_id"] == new
        assert log_lines(log_dir)[-1]["parent"] == f"{old}:1"
        host.run("x = 3")
        assert host.run("%rewind 0").stream("stdout") == "the state that this session began with is live\n"
        assert log_lines(log_dir)[-1]["parent"] == f"{old}:1"
        assert host.run("x").of("execute_result")[0]["data"]["text/plain"] == "1"
        assert new in host.run("%branch").stream("stdout")
        host.run(f"%branch {old}")
        assert host.run("x").of("execute_result")[0]["data"]["text/plain"] == "2"
    finally:
        host.close()


def test_a_silent_request_shows_nothing_and_is_marked_in_the_log(
    kernel: IsolatedKernelHost, log_dir: Path
) -> None:
    cell = kernel.run("print('unheard')\n5", silent=True)
    assert cell.shown == []
    line = log_lines(log_dir)[-1]
    assert (line["stdout"], line["tags"]["silent"]) == ("unheard\n", True)
    kernel.run("1", store_history=False)
    assert log_lines(log_dir)[-1]["tags"]["store_history"] is False


def test_a_text_that_is_not_unicode_is_shown_and_recorded(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    cell = kernel.run("raise Exception('\\ud8ff')")
    assert cell.of("error")[0]["evalue"] == "\\ud8ff"
    assert log_lines(log_dir)[-1]["error"]["message"] == "\\ud8ff"
    shown = kernel.run("display({'text/plain': '\\ud8ff'}, raw=True)").of("display_data")[0]
    assert shown["data"]["text/plain"] == "\\ud8ff"


def test_a_log_that_must_be_written_and_cannot_be_refuses_the_cell(tmp_path: Path) -> None:
    with registered(tmp_path / "jupyter", tmp_path / "log", TASK_LOG_STRICT="1"):
        host = IsolatedKernelHost()
        try:
            assert host.run("x = 1").reply["status"] == "ok"
            path = tmp_path / "log" / "P-1" / "7.kernel.jsonl"
            path.rename(tmp_path / "moved")
            path.mkdir()
            refused = host.run("print('must not run')")
            assert refused.reply["status"] == "error"
            assert str(path) in refused.of("error")[0]["evalue"]
            assert refused.stream("stdout") == ""
        finally:
            host.close()


def test_a_setting_that_makes_no_sense_is_told_in_every_cell(tmp_path: Path) -> None:
    with registered(tmp_path / "jupyter", tmp_path / "log", TASK_LOG_FSYNC="maybe"):
        host = IsolatedKernelHost()
        try:
            for code in ("x = 1", "%tasklog"):
                reply = host.run(code).reply
                assert reply["status"] == "error"
                assert (
                    "TASK_LOG_FSYNC: must be off or always, not 'maybe'; nothing has run" in reply["evalue"]
                )
            host.client.complete("x")
            assert host.client.get_shell_msg(timeout=PATIENCE_S)["content"]["status"] == "error"
            assert psutil.Process(host.pid).children() == []
        finally:
            host.close()


def test_a_request_without_code_is_answered(kernel: IsolatedKernelHost) -> None:
    session = kernel.client.session
    message = session.msg("execute_request", {"silent": False})
    session.send(kernel.client.shell_channel.socket, message)
    cell = kernel.gather(message["header"]["msg_id"])
    assert (cell.reply["status"], cell.reply["ename"]) == ("error", "InvalidRequest")


MALFORMED: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
    ("execute_request", {"code": "made = 1", "user_expressions": 5}, {}),
    ("execute_request", {"code": "made = 1", "allow_stdin": "yes"}, {}),
    ("execute_request", {"code": "made = 1"}, {"subshell_id": "none"}),
    ("complete_request", {}, {}),
    ("inspect_request", {"code": "a"}, {}),
    ("history_request", {"hist_access_type": "tail", "output": False, "raw": True, "n": "x"}, {}),
    ("is_complete_request", {"code": None}, {}),
)


@pytest.mark.parametrize(("kind", "content", "header"), MALFORMED)
def test_a_request_that_makes_no_sense_is_answered_and_runs_nothing(
    kind: str, content: dict[str, Any], header: dict[str, Any], kernel: IsolatedKernelHost
) -> None:
    session = kernel.client.session
    message = session.msg(kind, content)
    message["header"].update(header)
    session.send(kernel.client.shell_channel.socket, message)
    cell = kernel.gather(message["header"]["msg_id"])
    assert (cell.reply["status"], cell.reply["ename"]) == ("error", "InvalidRequest")
    assert kernel.run("'made' in globals()").of("execute_result")[0]["data"]["text/plain"] == "False"


def test_what_json_cannot_hold_in_a_display_is_shown_as_text(kernel: IsolatedKernelHost) -> None:
    cell = kernel.run("display({'application/json': {(1, 2): 2**70, True: '\\ud800'}}, raw=True)")
    expected = {"(1, 2)": str(2**70), "true": "\\ud800"}
    assert cell.of("display_data")[0]["data"] == {"application/json": expected}


def test_a_large_display_is_whole(kernel: IsolatedKernelHost, log_dir: Path) -> None:
    cell = kernel.run("display({'text/plain': 'x' * 30_000_000}, raw=True)")
    assert len(cell.of("display_data")[0]["data"]["text/plain"]) == 30_000_000
    line = log_lines(log_dir)[-1]
    assert sum(artifact["bytes"] for artifact in line["artifacts"]) >= 30_000_000


def test_the_control_channel_answers_while_a_cell_runs(kernel: IsolatedKernelHost) -> None:
    answered = threading.Event()

    def ask(kind: str, _: dict[str, Any]) -> None:
        if kind == "stream" and not answered.is_set():
            kernel.sync()
            answered.set()
            _interrupt(kernel, by_message=True)

    cell = kernel.run("import time\nprint('runs')\ntime.sleep(600)", on_message=ask)
    assert answered.is_set()
    assert cell.reply["ename"] == "KeyboardInterrupt"


def test_shutdown_ends_the_running_cell_with_its_line_and_all_processes(log_dir: Path) -> None:
    host = IsolatedKernelHost()
    host.run("import subprocess\nprogram = subprocess.Popen(['sleep', '600'])")
    processes = psutil.Process(host.pid).children(recursive=True)
    started = threading.Event()
    msg_id = host.client.execute("print('runs')\nwhile True: pass")
    while not started.is_set():
        message = host.client.get_iopub_msg(timeout=PATIENCE_S)
        if message["msg_type"] == "stream" and message["parent_header"]["msg_id"] == msg_id:
            started.set()
    host.close()
    assert log_lines(log_dir)[-1]["status"] == "interrupted"
    gone, alive = psutil.wait_procs(processes, timeout=PATIENCE_S)
    assert not alive
    assert len(gone) >= 3


def test_sigterm_ends_the_kernel_once_the_running_cell_has_its_line(log_dir: Path) -> None:
    host = IsolatedKernelHost()
    process = psutil.Process(host.pid)
    host.client.execute("print('runs')\nwhile True: pass")
    while host.client.get_iopub_msg(timeout=PATIENCE_S)["msg_type"] != "stream":
        pass
    os.kill(host.pid, signal.SIGTERM)
    gone, _ = psutil.wait_procs([process], timeout=PATIENCE_S)
    assert gone
    assert log_lines(log_dir)[-1]["status"] == "interrupted"
    host.close()
