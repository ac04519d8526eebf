"""The command `json-repl`, run as people run it."""

from __future__ import annotations

import json
import os
import pty
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

Run = Callable[..., subprocess.CompletedProcess[str]]

CELLS = """\
# A file with cells.
# %% First
print("one")
1 + 1
# %% [markdown]
# Not code.
# %% Fails
print("before")
raise LookupError("here")
# %% Last
import sys
print("three", file=sys.stderr)
"""

both_routes = pytest.mark.parametrize("route", ["local", "worker"])


@pytest.fixture
def env(tmp_path: Path) -> Mapping[str, str]:
    return os.environ | {"TASK_LOG_DIR": str(tmp_path / "logs"), "FLOW_PLAN_ID": "P", "FLOW_TASK_ID": "T-1"}


@pytest.fixture
def run(tmp_path: Path, env: Mapping[str, str]) -> Run:
    def run(*arguments: str, given: str | bytes = "") -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "json_repl", *arguments],
            input=given if isinstance(given, bytes) else given.encode(),
            capture_output=True,
            timeout=120,
            env=env,
            cwd=tmp_path,
            check=False,
        )
        return subprocess.CompletedProcess(
            done.args,
            done.returncode,
            done.stdout.decode(errors="replace"),
            done.stderr.decode(errors="replace"),
        )

    return run


def lines_of(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "logs/P/1.adhoc.jsonl").read_bytes().splitlines()]


@both_routes
def test_run_stops_at_the_first_cell_that_fails_and_says_where(tmp_path: Path, run: Run, route: str) -> None:
    (tmp_path / "f.py").write_text(CELLS)
    done = run("run", "f.py", "--route", route)
    assert (done.returncode, done.stdout) == (1, "one\n2\nbefore\n")
    assert done.stderr.count("LookupError: here") == 1
    assert done.stderr.endswith(
        "json-repl: stopped at cell 2 of 3 (Fails), line 8 of f.py; --keep-going runs the others too\n"
    )
    assert [(line["status"], line["tags"]) for line in lines_of(tmp_path)] == [
        ("ok", {"cell": "First"}),
        ("error", {"cell": "Fails"}),
    ]


@both_routes
def test_run_can_keep_going(tmp_path: Path, run: Run, route: str) -> None:
    (tmp_path / "f.py").write_text(CELLS)
    done = run("run", "--keep-going", "f.py", "--route", route)
    assert done.returncode == 1
    assert "three\n" in done.stderr
    assert done.stderr.endswith("json-repl: 1 of 3 cells failed\n")


def test_run_prints_outcomes_as_json_lines(tmp_path: Path, run: Run) -> None:
    (tmp_path / "f.py").write_text(CELLS)
    done = run("run", "--json", "--keep-going", "f.py")
    outcomes = [json.loads(line) for line in done.stdout.splitlines()]
    assert [outcome["success"] for outcome in outcomes] == [True, False, True]
    assert outcomes[0]["result"] == {"text/plain": "2"}


@both_routes
def test_standard_input_without_cells_is_one_piece(tmp_path: Path, run: Run, route: str) -> None:
    done = run("run", "-", "--route", route, given="import os\nos.write(1, b'raw\\n')\nprint('é')\n6 * 7")
    assert (done.returncode, done.stdout, done.stderr) == (0, "raw\né\n42\n", "")
    assert len(lines_of(tmp_path)) == 1


def test_code_from_a_file_can_ask_standard_input(tmp_path: Path, run: Run) -> None:
    (tmp_path / "f.py").write_text("a, b = input('a? '), input('b? ')\nprint(a + b)\ninput()")
    done = run("run", "f.py", given="1\n2\n")
    assert (done.returncode, done.stdout) == (1, "a? b? 12\n")
    assert "EOFError" in done.stderr


def test_a_time_limit_holds_for_each_cell(tmp_path: Path, run: Run) -> None:
    done = run("run", "-", "--time-limit", "0.3", given="while True: pass")
    assert done.returncode == 1
    assert lines_of(tmp_path)[0]["status"] == "timeout"


def test_a_file_in_another_declared_encoding_is_read_in_it(tmp_path: Path, run: Run) -> None:
    (tmp_path / "f.py").write_bytes("# coding: latin-1\r\nprint('\xe9')\r\n".encode("latin-1"))
    assert run("run", "f.py").stdout == "é\n"


@pytest.mark.parametrize(
    ("arguments", "given", "code", "said"),
    [
        (("run", "missing.py"), b"", 2, "missing.py can't be read: No such file"),
        (("run", "."), b"", 2, "can't be read: Is a directory"),
        (("run", "-"), b"x = '\xff'", 2, "standard input is not Python source text"),
        (("run", "-"), b"# coding: nonsense", 2, "nonsense"),
        (("run",), b"", 2, "FILE"),
        (("run", "-", "--route", "ray"), b"", 2, "'ray'"),
        (("run", "-", "--time-limit", "0"), b"", 2, "time-limit"),
        (("run", "-", "--time-limit", "nan"), b"", 2, "time_limit_s"),
        (("nope",), b"", 2, "nope"),
        (("--nope",), b"", 2, "nope"),
    ],
)
def test_wrong_use_is_one_line_and_exit_code_2(
    run: Run, arguments: tuple[str, ...], given: bytes, code: int, said: str
) -> None:
    done = run(*arguments, given=given)
    assert (done.returncode, done.stdout) == (code, "")
    assert re.fullmatch(r"json-repl: .*\n", done.stderr), done.stderr
    assert said in done.stderr


@pytest.mark.parametrize(
    ("command", "redirected"), [("demo", ">&-"), ("doctor --json", "> /dev/full"), ("--help", "> /dev/full")]
)
def test_an_output_that_cannot_be_used_is_one_line(
    command: str, redirected: str, tmp_path: Path, env: Mapping[str, str]
) -> None:
    line = f"{sys.executable} -m json_repl {command} {redirected}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=env, stderr=-1, text=True, check=False)
    assert done.returncode == 1
    assert re.fullmatch(r"json-repl: standard input or output can't be used: .*\n", done.stderr), done.stderr


def test_a_setting_that_cannot_be_followed_is_one_line(tmp_path: Path, env: Mapping[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "json_repl", "run", "-"],
        input="1",
        capture_output=True,
        text=True,
        env={**env, "TASK_LOG_FSYNC": "sometimes"},
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    assert re.fullmatch(r"json-repl: .*TASK_LOG_FSYNC.*\n", done.stderr)


def test_the_command_shows_its_help_and_version(run: Run) -> None:
    assert re.fullmatch(r"json-repl \d+\.\d+\.\d+\n", run("--version").stdout)
    shown = run("--help").stdout
    assert all(command in shown for command in ("serve", "run", "demo"))


def test_serve_is_the_default_command_and_takes_a_route(run: Run) -> None:
    given = '{"jsonrpc":"2.0","id":1,"method":"execute","params":{"code":"1+1"}}\n'
    ready, reply = (
        json.loads(line) for line in run("serve", "--route", "worker", given=given).stdout.splitlines()
    )
    assert (ready["params"]["route"], reply["result"]["result"]) == ("worker", {"text/plain": "2"})
    ready, reply = (json.loads(line) for line in run(given=given).stdout.splitlines())
    assert (ready["params"]["route"], reply["id"]) == ("local", 1)


@pytest.mark.parametrize("isolation", ["none", "process"])
@pytest.mark.parametrize("command", ["serve", "run"])
def test_the_isolation_that_is_asked_for_is_in_the_log(
    tmp_path: Path, run: Run, command: str, isolation: str
) -> None:
    _give_one_execution(run, command, "1 + 1", "--route", "worker", "--isolation", isolation)
    assert [(line["route"], line["isolation"]) for line in lines_of(tmp_path)] == [("worker", isolation)]


@pytest.mark.skipif(shutil.which("bwrap") is None, reason="bubblewrap is not installed")
@pytest.mark.parametrize("command", ["serve", "run"])
def test_a_sandbox_has_the_folder_and_the_network_that_are_asked_for(
    tmp_path: Path, run: Run, command: str
) -> None:
    (tmp_path / "work").mkdir()
    code = "import os; open('networks', 'w').write(os.readlink('/proc/self/ns/net'))"
    options = ("--isolation", "sandbox", "--work-folder", "work")
    for more, is_shared in (((), False), (("--network",), True)):
        _give_one_execution(run, command, code, *options, *more)
        network = (tmp_path / "work" / "networks").read_text()
        assert (network == os.readlink("/proc/self/ns/net")) is is_shared
    assert [(line["route"], line["isolation"]) for line in lines_of(tmp_path)] == [("worker", "sandbox")] * 2


def _give_one_execution(run: Run, command: str, code: str, *options: str) -> None:
    if command == "run":
        done = run("run", *options, "-", given=code)
    else:
        request = {"jsonrpc": "2.0", "id": 1, "method": "execute", "params": {"code": code}}
        done = run("serve", *options, given=json.dumps(request) + "\n")
        assert json.loads(done.stdout.splitlines()[-1])["result"]["success"]
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [("serve",), ("run", "-")])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--route", "local", "--isolation", "sandbox"), "needs route='worker'"),
        (("--route", "worker", "--network"), "needs isolation='sandbox'"),
        (("--isolation", "process", "--work-folder", "."), "needs isolation='sandbox'"),
        (("--isolation", "sandbox", "--work-folder", "absent"), "make it first"),
    ],
)
def test_options_that_do_not_go_together_are_one_line(
    run: Run, command: tuple[str, ...], options: tuple[str, ...], said: str
) -> None:
    done = run(*command, *options, given="1")
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(r"json-repl: .*\n", done.stderr), done.stderr
    assert said in done.stderr


@both_routes
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_interrupts_what_runs_and_its_line_is_written(
    tmp_path: Path, env: Mapping[str, str], route: str, number: signal.Signals
) -> None:
    (tmp_path / "f.py").write_text(
        "print('on', flush=True)\nimport time\ntime.sleep(60)\n# %%\nprint('never')"
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "json_repl", "run", "f.py", "--route", route],
        stdout=-1,
        stderr=-1,
        env=env,
        cwd=tmp_path,
        process_group=0,
    )
    assert process.stdout
    assert process.stdout.readline() == b"on\n"
    os.killpg(process.pid, number)  # as a terminal does: to the whole group
    out, err = process.communicate(timeout=30)
    assert (process.returncode, out) == (130, b"")
    assert err.endswith(b"json-repl: interrupted; what ran until then is in the task log\n")
    assert [(line["status"], line["stdout"]) for line in lines_of(tmp_path)] == [("interrupted", "on\n")]


def test_a_reader_of_the_output_that_leaves_is_no_traceback(tmp_path: Path, env: Mapping[str, str]) -> None:
    (tmp_path / "f.py").write_text("for i in range(100_000): print(i)\n# %%\nprint('never')")
    done = subprocess.run(
        ["sh", "-c", '"$0" -m json_repl run f.py | head -1', sys.executable],
        capture_output=True,
        text=True,
        env=env,
        cwd=tmp_path,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("0\n", "")
    assert len(lines_of(tmp_path)) == 1


def test_progress_shows_on_a_terminal_only_and_is_gone_at_the_end(
    tmp_path: Path, env: Mapping[str, str]
) -> None:
    (tmp_path / "f.py").write_text(
        "# %% Slow\nimport os, time\nwhile not os.path.exists('seen'): time.sleep(0.01)\nprint('out')\n"
        "# %% Quick\n1"
    )
    master, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "json_repl", "run", "f.py", "--time-limit", "60"],
        stdout=-1,
        stderr=terminal,
        env={**env, "TERM": "xterm"},
        cwd=tmp_path,
    )
    os.close(terminal)
    shown = b""
    try:
        while piece := os.read(master, 65536):
            shown += piece
            if b"0/2 Slow" in shown:
                (tmp_path / "seen").touch()
    except OSError:  # how Linux says that the other end is closed
        pass
    os.close(master)
    out, _ = process.communicate(timeout=60)
    assert out == b"out\n1\n"
    assert shown.endswith(b"\r\x1b[K")
