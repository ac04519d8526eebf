"""`task-log` as people and programs use it."""

from __future__ import annotations

import json
import os
import pty
import resource
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from task_logger.cli import main
from task_logger.codec import FIRST_PREV, complete, read_link, seal, timestamp
from task_logger.record import TaskIds
from tests.task_logger.task_log_command import environment, task_log

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
SESSION_ID = "0190163d-8694-739b-aea5-966c26f8ad91"
FIELDS: list[dict[str, object]] = [
    {"code": "x = 1", "added_vars": ["x"], "variables": {"x": {"type": "int"}}},
    {
        "code": "1/0",
        "success": False,
        "error": {"type": "ZeroDivisionError", "message": "division by zero", "traceback": "Trace\n"},
    },
    {
        "code": "print('\x1b[31mred\x1b[0m')\nprint(2)",
        "stdout": "\x1b[31mred\x1b[0m\n2\n",
        "tags": {"step": 4},
    },
]


def log_bytes(count: int = 3) -> bytes:
    return b"".join(line_bytes(count))


def line_bytes(count: int = 3) -> list[bytes]:
    prev, lines = FIRST_PREV, []
    for number in range(1, count + 1):
        given = FIELDS[(number - 1) % 3]
        body = complete(
            given, task=TASK, session_id=SESSION_ID, seq=number, timestamp=timestamp(number * 10**9)
        )
        line, prev = seal(body, number, prev)
        lines.append(line)
    return lines


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "P-1" / "7.user_login.jsonl"
    path.parent.mkdir()
    path.write_bytes(log_bytes())
    return path


def one_line_error(ended: subprocess.CompletedProcess[str], code: int) -> str:
    assert ended.returncode == code, ended.stderr
    assert ended.stderr.startswith("task-log: ")
    assert ended.stderr.count("\n") == 1
    return ended.stderr


def test_path_is_that_of_the_environments_task_or_the_one_named(tmp_path: Path) -> None:
    flow = {"FLOW_PLAN_ID": "P-2", "FLOW_TASK_ID": "T-3", "FLOW_TASK_NAME": "a b"}
    assert task_log(tmp_path, "path").stdout == f"{tmp_path}/local/unknown.adhoc.jsonl\n"
    assert task_log(tmp_path, "path", **flow).stdout == f"{tmp_path}/P-2/3.a_b.jsonl\n"
    named = task_log(tmp_path, "path", "--plan", "P-9", "--task", "x", "--name", "y", "--json", **flow)
    assert json.loads(named.stdout) == {"path": f"{tmp_path}/P-9/x.y.jsonl", "exists": False}
    assert list(tmp_path.iterdir()) == []


def test_path_gives_the_bytes_of_a_path_that_is_no_utf_8(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path) + b"/\xff"
    ended = subprocess.run(
        [sys.executable, "-m", "task_logger", "path", "--dir", root],
        capture_output=True,
        check=True,
        env=environment(tmp_path),
    )
    assert ended.stdout == root + b"/local/unknown.adhoc.jsonl\n"


def test_output_that_cannot_be_written_is_one_line_on_stderr(log: Path, tmp_path: Path) -> None:
    for arguments in (["path"], ["show", str(log)], ["ls", "--json"]):
        with Path("/dev/full").open("w") as full:
            ended = subprocess.run(
                [sys.executable, "-m", "task_logger", *arguments],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
                check=False,
                env=environment(tmp_path),
            )
        assert "No space left" in one_line_error(ended, 1)
    closed = [*("sh", "-c", '"$0" -m task_logger ls >&-'), sys.executable]
    ended = subprocess.run(closed, stderr=-1, text=True, check=False, env=environment(tmp_path))
    assert "it is closed" in one_line_error(ended, 1)


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    "command",
    [
        ("json_repl", "--help"),
        ("task_logger", "path"),
        ("task_logger", "show", "--json", "7.user_login.jsonl", "1"),
    ],
    ids=" ".join,
)
def test_output_of_which_a_part_can_be_written_is_never_taken_for_written(
    log: Path, tmp_path: Path, command: tuple[str, ...], unbuffered: str
) -> None:
    with (tmp_path / "output").open("wb") as output:
        ended = subprocess.run(
            [sys.executable, "-m", *command],
            cwd=log.parent,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            # Else what is imported would leave a part of its bytecode for everybody.
            env=environment(tmp_path, PYTHONUNBUFFERED=unbuffered, PYTHONDONTWRITEBYTECODE="1"),
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20, 20)),  # no threads here
        )
    assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
    assert "File too large" in ended.stderr


def test_an_execution_without_a_line_is_shown_running_or_unknown(tmp_path: Path) -> None:
    code = (
        "import os, sys; from task_logger.record import *; from task_logger.session_log import SessionLog\n"
        "task = TaskIds(plan_id='P', task_id='T-1', task_name='n')\n"
        f"log = SessionLog(root={str(tmp_path)!r}, task=task, session_id={SESSION_ID!r})\n"
        f"request = ExecutionRequest(code='never ends', session_id={SESSION_ID!r}, seq=1, task=task,"
        " timestamp='2026-01-01T00:00:00.000Z')\n"
        "log.begin(request); print(log.path, flush=True); sys.stdin.read(); os._exit(0)"
    )
    session = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    assert session.stdout is not None
    path = session.stdout.readline().strip()
    assert "\trunning\t\tnever ends\t" in task_log(tmp_path, "show", path).stdout
    (pending,) = map(json.loads, task_log(tmp_path, "show", path, "--json").stdout.splitlines())
    assert pending["pending"]["running"] is True
    session.communicate("")
    assert "\tunknown\t\tnever ends\t" in task_log(tmp_path, "show", path).stdout
    assert Path(path).read_bytes() == b""


def test_ls_lists_logs_in_numbers(log: Path, tmp_path: Path) -> None:
    ended = task_log(tmp_path, "ls")
    titles, row = (line.split("\t") for line in ended.stdout.splitlines())
    assert titles == ["plan", "task", "name", "lines", "ok", "failed", "last", "bytes"]
    assert row[:6] == ["P-1", "T-7", "user login", "3", "2", "1"]
    (summary,) = map(json.loads, task_log(tmp_path, "ls", "--json").stdout.splitlines())
    assert summary["path"] == str(log)
    assert summary["bytes"] == log.stat().st_size
    assert task_log(tmp_path, "ls", "--plan", "P-2", "--json").stdout == ""


def test_ls_names_what_cannot_be_read_and_lists_the_rest(log: Path, tmp_path: Path) -> None:
    (log.parent / "0.folder.jsonl").mkdir()
    (log.parent / "9.cut.jsonl.zst").touch()
    ended = task_log(tmp_path, "ls", "--json")
    assert [json.loads(line)["path"] for line in ended.stdout.splitlines()] == [str(log)]
    assert ["0.folder" in line or "9.cut" in line for line in ended.stderr.splitlines()] == [True, True]
    assert ended.returncode == 1


def test_show_is_a_table_without_colour_or_lines_in_a_pipe(log: Path, tmp_path: Path) -> None:
    ended = task_log(tmp_path, "show", str(log))
    assert ended.returncode == 0
    assert ended.stderr == ""
    titles, *rows = (line.split("\t") for line in ended.stdout.splitlines())
    assert titles == ["n", "time", "status", "ms", "code", "outcome"]
    assert [row[2] for row in rows] == ["ok", "error", "ok"]
    assert rows[1][5] == "ZeroDivisionError: division by zero"
    assert ended.stdout.isascii() or "…" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_show_finds_the_log_of_a_task_by_its_id_alone(log: Path, tmp_path: Path) -> None:
    by_id = task_log(tmp_path, "show", "--plan", "P-1", "--task", "T-7", "--json")
    by_environment = task_log(
        tmp_path, "show", "--json", FLOW_PLAN_ID="P-1", FLOW_TASK_ID="T-7", FLOW_TASK_NAME="user login"
    )
    assert by_id.stdout == by_environment.stdout == log.read_text()
    (log.parent / "7.other.jsonl").write_bytes(log_bytes(1))
    assert "--name" in one_line_error(task_log(tmp_path, "show", "--plan", "P-1", "--task", "T-7"), 2)


def test_show_of_one_line_shows_all_of_it_and_no_control_character(log: Path, tmp_path: Path) -> None:
    failed = task_log(tmp_path, "show", str(log), "2").stdout
    for part in (
        "1/0",
        "ZeroDivisionError: division by zero",
        "Trace",
        "P-1",
        "T-7 (user login)",
        SESSION_ID,
    ):
        assert part in failed
    printed = task_log(tmp_path, "show", str(log), "3").stdout
    assert "\x1b" not in printed
    assert "\\x1b[31mred" in printed
    assert "step: 4" in printed
    assert "added x: int" in task_log(tmp_path, "show", str(log), "1").stdout
    assert json.loads(task_log(tmp_path, "show", str(log), "2", "--json").stdout)["n"] == 2


@pytest.mark.parametrize("number", ["0", "4", "99999999999999999999"])
def test_a_line_that_is_not_there_is_an_error_that_says_which_are(
    log: Path, tmp_path: Path, number: str
) -> None:
    assert "its lines are 1 to 3" in one_line_error(task_log(tmp_path, "show", str(log), number), 1)


def test_tail_shows_the_last_lines(log: Path, tmp_path: Path) -> None:
    assert len(task_log(tmp_path, "tail", str(log)).stdout.splitlines()) == 3
    assert task_log(tmp_path, "tail", "-n", "1", "--json", str(log)).stdout.encode() == line_bytes()[2]
    assert task_log(tmp_path, "tail", "-n", "0", str(log)).stdout == ""


@pytest.fixture
def following(log: Path, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-m", "task_logger", "tail", "-f", "--json", str(log)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(tmp_path),
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def next_number(following: subprocess.Popen[str]) -> int:
    assert following.stdout is not None
    return int(json.loads(following.stdout.readline())["n"])


def test_tail_follows_what_is_added_and_ends_at_ctrl_c(log: Path, following: subprocess.Popen[str]) -> None:
    lines = line_bytes(6)
    assert [next_number(following) for _ in range(3)] == [1, 2, 3]
    with log.open("ab", buffering=0) as file:
        file.write(lines[3])
        assert next_number(following) == 4
        file.write(lines[4][:100])
        file.write(lines[4][100:] + lines[5])
        assert [next_number(following) for _ in range(2)] == [5, 6]
    following.send_signal(signal.SIGINT)
    rest, errors = following.communicate(timeout=30)
    assert (rest, errors, following.returncode) == ("", "", 0)


def test_tail_says_when_the_log_it_follows_is_gone(log: Path, following: subprocess.Popen[str]) -> None:
    assert [next_number(following) for _ in range(3)] == [1, 2, 3]
    log.unlink()
    _, errors = following.communicate(timeout=30)
    assert following.returncode == 1
    assert "removed or replaced" in errors


@pytest.mark.parametrize("command", ["show", "tail", "ls"])
def test_damage_is_named_on_stderr_and_the_whole_lines_are_shown(
    log: Path, tmp_path: Path, command: str
) -> None:
    first, second, third = line_bytes()
    log.write_bytes(first + b"garbage\n" + second.replace(b"1/0", b"1/1") + third)
    ended = task_log(tmp_path, command, *([] if command == "ls" else [str(log)]))
    assert ended.returncode == 1
    assert str(log) in ended.stderr
    if command == "ls":
        assert "damaged in 3 places" in ended.stderr
    else:
        assert ended.stderr.count("unreadable at byte") == 2
        assert "line 3 follows line 1" in ended.stderr
        assert sum("unreadable" in line for line in ended.stdout.splitlines()) == 2
    assert "Traceback" not in ended.stderr


def test_a_tail_being_written_is_mentioned_and_no_failure(log: Path, tmp_path: Path) -> None:
    log.write_bytes(log_bytes()[:-40])
    for command in ("show", "tail"):
        ended = task_log(tmp_path, command, str(log))
        assert ended.returncode == 0
        assert "torn tail" in ended.stdout
        assert "it is being written, or its writer died" in ended.stderr


def test_damage_in_json_is_an_object_of_its_own(log: Path, tmp_path: Path) -> None:
    log.write_bytes(b"garbage\n" + log_bytes(1))
    damage, line = map(json.loads, task_log(tmp_path, "show", "--json", str(log)).stdout.splitlines())
    assert (damage["damage"], damage["at"], damage["bytes"]) == ("unreadable", 0, 7)
    assert line["n"] == 1


@pytest.mark.foreign_lines
def test_a_line_of_another_version_is_named_and_a_failure(log: Path, tmp_path: Path) -> None:
    newer, _ = seal(
        line_bytes(1)[0].partition(b',"n":')[0].replace(b'"schema":1', b'"schema":9'), 1, FIRST_PREV
    )
    log.write_bytes(newer)
    ended = task_log(tmp_path, "show", str(log))
    assert ended.returncode == 1
    assert "schema 9" in ended.stderr


@pytest.mark.parametrize(
    "arguments",
    [["show", "nowhere.jsonl"], ["tail", "nowhere.jsonl"], ["tail", "-f", "no.jsonl"], ["show", "/"],
     ["show"], ["ls", "--dir", "/no"], ["show", "/dev/null"], ["tail", "--plan", "P-7", "--task", "T-1"]],
)  # fmt: skip
def test_what_is_no_log_is_one_line_on_stderr(log: Path, tmp_path: Path, arguments: list[str]) -> None:
    ended = task_log(tmp_path, *arguments)
    one_line_error(ended, 1)
    assert ended.stdout == ""


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing"],
        ["show", "a", "b", "c"],
        ["tail", "-n", "-1"],
        ["tail", "-n", "x"],
        ["ls", "--what"],
        ["path", "x"],
    ],
)
def test_wrong_usage_is_one_line_on_stderr(tmp_path: Path, arguments: list[str]) -> None:
    one_line_error(task_log(tmp_path, *arguments), 2)


def test_a_setting_that_makes_no_sense_is_one_line_on_stderr(tmp_path: Path) -> None:
    assert "log_dir" in one_line_error(task_log(tmp_path, "path", "--dir", ""), 1)


@pytest.mark.parametrize(
    "arguments",
    [
        ("show", "9" * 5000),
        ("show", "1", "--artifact", "--range", f"0:{'9' * 5000}"),
        ("show", "--since", "yesterday"),
        ("export", "P-1", "-o", "a.tar.zst", "--since", "yesterday"),
    ],
    ids=["line", "range", "since", "export"],
)
def test_an_argument_that_is_no_number_or_time_is_wrong_usage(
    arguments: tuple[str, ...], log: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TASK_LOG_DIR", str(log.parent.parent))
    assert main([*arguments, "--dir", str(log.parent.parent)]) == 2
    assert capfd.readouterr().err.startswith("task-log: ")


def test_help_says_what_there_is(tmp_path: Path) -> None:
    for arguments in (["--help"], ["show", "-h"]):
        ended = task_log(tmp_path, *arguments)
        assert ended.returncode == 0
        assert ended.stdout.startswith("Usage: task-log")
    without = task_log(tmp_path)
    assert without.returncode == 2
    assert without.stderr.startswith("Usage: task-log")


def test_a_reader_that_leaves_early_is_no_error(log: Path, tmp_path: Path) -> None:
    log.write_bytes(log_bytes(2000))
    command = f"{sys.executable} -m task_logger show {log} --json | head -n 1; echo ${{PIPESTATUS[0]}}"
    ended = subprocess.run(
        ["bash", "-c", command],
        capture_output=True,
        text=True,
        check=True,
        env=environment(tmp_path),
    )
    assert ended.stderr == ""
    assert ended.stdout.splitlines()[1] == "0"


def on_a_terminal(root: Path, *arguments: str) -> str:
    """Run the command with a terminal as its output; returns what the terminal got."""
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "task_logger", *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        env=environment(root, TERM="xterm"),
    )
    os.close(terminal)
    got = b""
    try:
        while piece := os.read(controller, 65536):
            got += piece
    except OSError:  # EIO: the other end is closed
        pass
    os.close(controller)
    assert process.wait(timeout=30) == 0
    return got.decode()


def test_a_terminal_gets_a_table_with_colour_within_its_width(log: Path, tmp_path: Path) -> None:
    got = on_a_terminal(tmp_path, "show", str(log))
    assert "\x1b[32mok" in got
    assert "\x1b[31mred" not in got
    for arguments in (["ls"], ["show", str(log)]):
        no_colour = subprocess.run(
            ["sed", "s/\\x1b\\[[0-9;]*m//g"],
            input=on_a_terminal(tmp_path, *arguments),
            capture_output=True,
            text=True,
            check=True,
        )
        assert max(map(len, no_colour.stdout.splitlines())) <= 80


def test_json_on_a_terminal_cannot_command_it(log: Path, tmp_path: Path) -> None:
    body = complete(
        {"stdout": "\x9b31m\u202e\x7f\x1b"}, task=TASK, session_id=SESSION_ID, seq=1, timestamp=timestamp(0)
    )
    log.write_bytes(seal(body, 1, FIRST_PREV)[0])
    got = on_a_terminal(tmp_path, "show", str(log), "--json")
    assert json.loads(got)["stdout"] == "\x9b31m\u202e\x7f\x1b"
    assert not set(got.strip()) & set("\x9b\u202e\x7f\x1b")
    assert "\x9b" in task_log(tmp_path, "show", str(log), "--json").stdout


_FORGED = {
    "no JSON": b'{"a":nonsense',
    "too deep": b'{"a":' + b"[" * 3000 + b"]" * 3000,
    "no UTF-8": b'{"\xff":1',
    "names odd pieces": b'{"recovered":[5,{"at":"x","bytes":null}]',
    "has a lone surrogate": b'{"session_id":"\\ud800"',
}
"""Bodies of lines whose hash and place in the chain are right: anyone can make them."""


@pytest.mark.parametrize("forged", _FORGED.values(), ids=_FORGED)
def test_a_forged_line_with_the_right_hash_breaks_no_command(
    log: Path,
    tmp_path: Path,
    forged: bytes,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TASK_LOG_DIR", str(tmp_path))
    lines = log.read_bytes().splitlines()
    last = read_link(lines[-1])
    assert last is not None
    line, _ = seal(forged, last.n + 1, last.hash)
    log.write_bytes(b"\n".join([*lines, line]))
    path, since = str(log), ("--since", "1970-01-01")
    for command in (
        ("show",),
        ("show", *since),
        ("show", "--tree"),
        ("show", "--json"),
        ("tail",),
        ("decrypt",),
    ):
        main([command[0], path, *command[1:]])
        assert len(capfd.readouterr().out.splitlines()) >= len(lines)
    assert main(["show", path, "--json"]) in (0, 1)
    assert [json.loads(shown) for shown in capfd.readouterr().out.splitlines()]
    for command in (("ls",), ("verify",), ("gc", log.parent.name)):
        assert main([*command]) in (0, 1)
    export = ("export", log.parent.name, "-o", str(tmp_path / "a.tar.zst"), *since)
    assert main([*export]) in (0, 1)
