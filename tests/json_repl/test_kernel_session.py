"""Sessions on the jupyter route, from Python, on stdio and from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from json_repl.errors import InvalidRequest
from json_repl.session import Session
from repl_kernel.errors import KernelUnreachable, RequestRefused
from task_logger.errors import ConfigurationError
from tests.conftest import PATIENCE_S


def test_a_session_on_a_kernel_is_recorded_like_any_other(log_root: Path, no_leaks: None) -> None:
    with Session(route="jupyter", kernel="python3", task_id="T-7") as session:
        assert (session.route, session.isolation) == ("jupyter", "external")
        outcome = session.execute_code(
            "from IPython.display import display\ndisplay({'text/plain': 'shown'}, raw=True)\n1 + 1"
        )
        session.execute_code("print(3)", tags={"step": "2"})
        session.restart()
        failed = session.execute_code("import os\n1 / (os.environ['FLOW_TASK_ID'] != 'T-7')")
        for attempt in _TIMELINE:
            with pytest.raises(InvalidRequest, match="needs route='worker'"):
                attempt(session)
        with pytest.raises(RequestRefused, match="route='worker'"):
            session.variables()
        lines = session.history()
    assert outcome["result"] == {"text/plain": "2"}
    assert failed["error"]["type"] == "ZeroDivisionError"
    assert [(line["seq"], line["status"], line["route"], line["isolation"]) for line in lines] == [
        (1, "ok", "jupyter", "external"),
        (2, "ok", "jupyter", "external"),
        (3, "error", "jupyter", "external"),
    ]
    assert lines[0]["displays"] == [{"text/plain": "shown"}]
    assert (lines[1]["stdout"], lines[1]["tags"]) == ("3\n", {"step": "2"})
    assert not any(line["diff_complete"] for line in lines)


@pytest.mark.parametrize("kernel", ["json_repl", "json_repl_isolated"])
def test_beside_an_encrypted_log_no_kernel_records_in_clear(
    kernel: str, log_root: Path, tmp_path: Path, no_leaks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("0" * 64, encoding="ascii")
    key.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{key}")
    with pytest.raises(KernelUnreachable, match=f"'{kernel}' records its cells itself, and would do so in"):
        Session(route="jupyter", kernel=kernel)
    assert not list(log_root.rglob("*.jsonl"))


_TIMELINE: list[Callable[[Session], object]] = [
    lambda session: session.snapshots(),
    lambda session: session.snapshot(),
    lambda session: session.rewind(1),
    lambda session: session.branch(1),
    lambda session: session.speculate(["1"]),
    lambda session: session.execute_code("1", atomic=True),
]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"route": "jupyter"}, "kernel"),
        ({"route": "jupyter", "kernel": ""}, "kernel"),
        ({"route": "jupyter", "kernel": Path("python3")}, "kernel: must be .* as a text"),
        ({"route": "local", "kernel": "python3"}, "kernel"),
        ({"route": "worker", "kernel": "python3"}, "kernel"),
        ({"kernel": "python3"}, "kernel"),
        ({"route": "jupyter", "kernel": "python3", "isolation": "sandbox"}, "isolation"),
        ({"route": "jupyter", "kernel": "python3", "preload": ["json"]}, "preload: .* the jupyter route has"),
        ({"route": "jupyter", "kernel": "python3", "work_folder": "/tmp"}, "work_folder"),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(
    settings: dict[str, Any], named: str, log_root: Path, no_leaks: None
) -> None:
    with pytest.raises(ConfigurationError, match=f"^{named}"):
        Session(**settings)


def test_a_kernel_that_there_isnt_leaves_nothing(log_root: Path, no_leaks: None) -> None:
    with pytest.raises(KernelUnreachable, match="fortran"):
        Session(route="jupyter", kernel="fortran")


def test_a_kernel_is_served_on_stdio(log_root: Path) -> None:
    requests = [
        {"method": "execute", "params": {"code": "name = input('who? ')\nname", "allow_input": True}},
        {"method": "input_reply", "params": {"text": "me"}},
    ]
    process = _command("serve", "--kernel", "python3")
    assert process.stdin is not None
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())["params"]
    assert ready["route"] == "jupyter"
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 1, **requests[0]}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["params"]["prompt"] == "who? "
    process.stdin.write(json.dumps({"jsonrpc": "2.0", **requests[1]}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["result"]["result"] == {"text/plain": "'me'"}
    process.stdin.write(json.dumps({"jsonrpc": "2.0", "id": 3, "method": "variables"}) + "\n")
    process.stdin.flush()
    assert json.loads(process.stdout.readline())["error"] == {
        "code": -32603,
        "message": "the jupyter route can't describe the variables of a kernel; use route='worker'",
    }
    process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 0


def test_a_file_is_run_on_a_kernel(log_root: Path, tmp_path: Path) -> None:
    file = tmp_path / "cells.py"
    file.write_text("print('one')\n# %%\n40 + 2\n")
    process = _command("run", "--kernel", "python3", str(file))
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err) == (0, "one\n42\n", "")


@pytest.mark.parametrize(
    ("options", "code"),
    [(("--kernel", "fortran"), 1), (("--route", "jupyter"), 2)],
    ids=["unknown", "missing"],
)
def test_a_wrong_kernel_is_one_line_that_says_so(options: tuple[str, ...], code: int, log_root: Path) -> None:
    process = _command("serve", *options)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, out, err.count("\n")) == (code, "", 1)
    assert "kernel" in err


def _command(*arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", "import sys; from json_repl.cli import main; sys.exit(main())"]
    return subprocess.Popen(
        [*command, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
