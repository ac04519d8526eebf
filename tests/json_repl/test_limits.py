"""Limits as a session, a pool, a command and a client are told of them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from json_repl import Session, SessionPool, SessionProcess
from repl_kernel.limits import Limits
from task_logger.errors import ConfigurationError

ROOT = Path(__file__).parents[2]
TOO_MUCH = "b'x' * 10**9"


def verdict(outcome: dict[str, Any]) -> str | None:
    return None if outcome["error"] is None else str(outcome["error"]["type"])


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"route": "local", "limits": {"cpu_s": 1}}, "route='worker'"),
        ({"route": "worker", "limits": {"memory": 1}}, "memory_bytes, cpu_s"),
        ({"route": "worker", "limits": {"processes": -1}}, "processes is -1; it must be"),
        ({"route": "worker", "limits": 5}, "a Limits, or a mapping"),
        ({"route": "worker", "limits": {"work_folder_files": 50}}, "isolation='sandbox'"),
    ],
)
def test_limits_that_cannot_be_meant_are_a_configuration_error(
    log_root: Path, settings: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigurationError, match=words):
        Session(**settings)


def test_a_verdict_is_in_the_record(log_root: Path) -> None:
    with Session(route="worker", limits=Limits(memory_bytes=256 << 20)) as session:
        outcome = session.execute_code(TOO_MUCH)
        (line,) = session.history()
    assert verdict(outcome) == "MemoryLimitExceeded"
    assert line["error"]["type"] == "MemoryLimitExceeded"
    assert line["stderr"].endswith(
        f"{line['error']['type']}: {outcome['error']['message'].partition('; the')[0]}\n"
    )


def test_a_branch_has_the_limits_of_its_session(log_root: Path) -> None:
    with Session(route="worker", limits={"memory_bytes": 256 << 20}) as session:
        session.execute_code("x = 1")
        with session.branch(1) as branch:
            assert branch.limits == session.limits
            assert verdict(branch.execute_code(TOO_MUCH)) == "MemoryLimitExceeded"


def test_sessions_of_a_pool_have_its_limits_or_their_own(log_root: Path) -> None:
    with SessionPool(1, limits={"memory_bytes": 256 << 20}) as pool:
        with pool.session() as session:
            assert verdict(session.execute_code(TOO_MUCH)) == "MemoryLimitExceeded"
        with pool.session(limits={"output_bytes": 10}) as session:
            assert verdict(session.execute_code(TOO_MUCH + "; print('x' * 50)")) == "OutputLimitExceeded"
        with pool.session(limits={"memory_bytes": math.inf}) as session:
            assert verdict(session.execute_code(f"{TOO_MUCH}; 1")) is None


def test_a_process_of_its_own_can_be_limited(log_root: Path) -> None:
    with SessionProcess(limits={"memory_bytes": 256 << 20, "output_bytes": math.inf}) as session:
        assert session.ready["route"] == "worker"
        assert verdict(session.execute_code(TOO_MUCH)) == "MemoryLimitExceeded"


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "json_repl", *arguments],
        input=TOO_MUCH, capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip


def test_a_file_is_run_within_limits(log_root: Path) -> None:
    found = run("run", "-", "--json", "--limit", "memory_bytes=256M", "--limit", "cpu_s=10")
    assert found.returncode == 1
    assert verdict(json.loads(found.stdout)) == "MemoryLimitExceeded"


@pytest.mark.parametrize("command", ["run", "serve"])
def test_a_limit_that_cannot_be_meant_is_one_line_on_stderr(log_root: Path, command: str) -> None:
    found = run(command, *(["-"] if command == "run" else []), "--limit", "memory_bytes=much")
    assert (found.returncode, found.stdout) == (2, "")
    assert "memory_bytes is 'much'" in found.stderr
    assert found.stderr.count("\n") == 1


def test_the_doctor_tells_what_can_be_limited() -> None:
    limits = json.loads(run("doctor", "--json").stdout)["limits"]
    assert {*limits["kernel"], *limits["watched"]} == {"memory_bytes", "processes"}
    assert (limits["fix"] is None) == (not limits["watched"])
    assert "limits: memory_bytes" in run("doctor").stdout
