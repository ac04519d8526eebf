"""The states around an execution, to look around in."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from json_repl.replay import Landing, LiveReplay, LiveSettings, load_recording
from json_repl.replay.errors import NothingToReplay
from json_repl.session import Session
from tests.conftest import WaitUntil
from tests.json_repl.replay.recorded_logs import change, record

pytestmark = pytest.mark.usefixtures("no_leaks")

IN_PROCESSES = LiveSettings(isolation="process")


def value_of(session: Session | None, code: str) -> str:
    assert session is not None
    text: str = session.execute_code(code)["result"]["text/plain"]
    return text


@pytest.mark.parametrize("settings", [IN_PROCESSES, LiveSettings()], ids=["process", "sandbox"])
def test_there_is_a_session_just_before_and_one_just_after(settings: LiveSettings, log_root: Path) -> None:
    path = record(["x = [1]", "x.append(2)", "x.append(3); x", "x.append(4)"])
    before = path.read_bytes()
    with Landing(LiveReplay(load_recording(str(path)), settings), 3) as landing:
        assert value_of(landing.before, "x") == "[1, 2]"
        assert value_of(landing.after, "x") == "[1, 2, 3]"
        log_dir = os.path.dirname(os.path.dirname(landing.before.log_path))
        assert landing.before.execute_code("1 / 0")["error"]["line"] == 1
    assert not os.path.exists(log_dir)
    assert path.read_bytes() == before


def test_the_first_execution_of_a_branch_starts_from_its_origin(log_root: Path) -> None:
    with Session("worker", task_id="T-1") as session:
        session.execute_code("x = 1")
        with session.branch(1) as branch:
            branch.execute_code("x += 10; x")
        path = session.log_path
    with Landing(LiveReplay(load_recording(path), IN_PROCESSES), 2) as landing:
        assert (value_of(landing.before, "x"), value_of(landing.after, "x")) == ("1", "11")


def test_an_execution_that_leaves_no_state_has_only_the_one_before_it(log_root: Path) -> None:
    path = record(["x = 1", "import os; os._exit(3)"])
    with Landing(LiveReplay(load_recording(str(path)), IN_PROCESSES), 2) as landing:
        assert value_of(landing.before, "x") == "1"
        assert landing.after is None
    with pytest.raises(NothingToReplay):
        Landing(LiveReplay(load_recording(str(path)), IN_PROCESSES), 9)


def change_second(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[1]["result"]["text/plain"] = "3"
    return lines


def look_around(path: Path, given: str) -> str:
    """Replay with --shell and this input; returns what the prompt has shown."""
    arguments = ["replay", str(path), "--live", "--isolation", "process", "--shell"]
    command = [sys.executable, "-m", "json_repl", *arguments]
    ended = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (1, "")
    return ended.stdout.partition("The states around")[2]


def test_the_shell_of_a_recorded_notebook_has_its_magics(log_root: Path, tmp_path: Path) -> None:
    recorded = record(["x = 1", "%time x += 1\nx"], shell="ipython")
    path = change(recorded, tmp_path / "other" / "1.x.jsonl", change_second)
    shown = look_around(path, "%who_ls\n%before\n!echo in x is {x}\n%quit\n")
    assert "['x']\nin x is 1\n" in shown


def test_the_shell_looks_around_in_both_states(log_root: Path, tmp_path: Path) -> None:
    path = change(record(["x = 1", "x += 1; x"]), tmp_path / "other" / "1.x.jsonl", change_second)
    loop = "for n in range(2):\n    print('before', x + n)\n\n"
    given = f"('after', x)\n%before\n{loop}%nowhere\nx +\n%quit\nprint(99)\n"
    shown = look_around(path, given)
    assert "('after', 2)\nbefore 1\nbefore 2\nThere is no %nowhere here" in shown
    assert "SyntaxError" in shown
    assert "99" not in shown


def test_ctrl_c_ends_what_runs_in_the_shell_and_a_crash_there_is_told(
    log_root: Path, tmp_path: Path, wait_until: WaitUntil
) -> None:
    path = change(record(["x = 1", "x += 1; x"]), tmp_path / "other" / "1.x.jsonl", change_second)
    (temporary := tmp_path / "tmp").mkdir()
    command = [sys.executable, "-m", "json_repl", "replay", str(path), "--live", "--isolation", "process"]
    shell = subprocess.Popen(
        [*command, "--shell"],
        stdin=-1,
        stdout=-1,
        stderr=-1,
        text=True,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert shell.stdin
    begun = tmp_path / "begun"

    def give(code: str) -> None:
        assert shell.stdin
        shell.stdin.write(f"{code}; open({str(begun)!r}, 'w').close(); import time; time.sleep(600)\n")
        shell.stdin.flush()
        wait_until(begun.exists)
        begun.unlink()

    try:
        give("x = 7")
        shell.send_signal(signal.SIGINT)
        shell.stdin.write("('still', x)\nimport os; os._exit(3)\n")
        give("1")
        shell.send_signal(signal.SIGTERM)
        shown, errors = shell.communicate(timeout=30)
    finally:
        shell.kill()
        shell.wait()
    assert (shell.returncode, errors) == (128 + signal.SIGTERM, "")
    assert "interrupted\n('still', 7)\n" in shown
    assert "note: the worker ended with exit code 3" in shown
    assert list(temporary.iterdir()) == []
