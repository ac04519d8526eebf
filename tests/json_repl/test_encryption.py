"""Sessions with a key: what they keep is encrypted, on every route, and the worker never sees the key."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from json_repl import Session
from json_repl.observed_log import ObservedLog
from task_logger.artifacts import get
from task_logger.encryption import artifact_cipher
from task_logger.errors import ConfigurationError, KeyMissing, WrongKey
from task_logger.keys import KeySource
from task_logger.reader import Damage, LogLine, read_lines, read_records
from task_logger.record import ExecutionOutcome, TaskIds
from tests.task_logger.log_check import check_log

_NEEDLE = "nobody may find this"
_PRINT_MUCH = f"for number in range(60_000): print(number, {_NEEDLE!r})"


@pytest.fixture
def key_file(tmp_path: Path, log_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file with the environment's key."""
    path = tmp_path / "key file"
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{path}")
    monkeypatch.setenv("FLOW_PLAN_ID", "P")
    return path


@pytest.fixture(autouse=True)
def _nothing_is_readable(log_root: Path, key_file: Path) -> Iterator[None]:
    """Whatever a test has kept: neither what ran nor the key is in it."""
    yield
    secret = key_file.read_bytes()
    forms = [secret, secret.hex().encode(), b64encode(secret), *_needle_forms()]
    for path in log_root.rglob("*"):
        if path.is_file():
            content = path.read_bytes()
            assert [form for form in forms if form in content] == [], path


def _needle_forms() -> list[bytes]:
    return [_NEEDLE.encode(), *(b64encode(_NEEDLE.encode()[start:])[4:-4] for start in range(3))]


def _codes(path: str) -> list[tuple[str, str]]:
    records = list(read_records(path))
    assert not any(isinstance(record, Damage) for record in records)
    return [
        (record.request.code, record.outcome.status) for record in records if not isinstance(record, Damage)
    ]


@pytest.mark.parametrize("route", ["local", "worker"])
def test_a_session_is_recorded_and_read_back(route: Any, log_root: Path) -> None:
    with Session(route=route) as session:
        session.execute_code(f"x = {_NEEDLE!r}; x")
        session.execute_code("1/0")
        much = session.execute_code(_PRINT_MUCH)
        assert [line["seq"] for line in session.history()] == [1, 2, 3]
        assert session.history(1)[0]["code"] == _PRINT_MUCH
    assert [status for _, status in _codes(session.log_path)] == ["ok", "error", "ok"]
    assert check_log(session.log_path).breaks == []
    (artifact,) = much["artifacts"]
    with get(str(log_root / "P"), artifact["sha256"]) as file:
        content = file.read()
    assert content == b"".join(b"%d %b\n" % (number, _NEEDLE.encode()) for number in range(60_000))
    assert len(content) == artifact["bytes"]


@pytest.mark.parametrize("route", ["local", "worker"])
def test_output_on_its_way_to_an_artifact_is_on_no_disk_as_it_is(route: Any, log_root: Path) -> None:
    seen: list[str] = []
    calls = count()

    def look(_name: str, _text: str) -> None:
        if route == "local" and next(calls) % 4_000:
            return  # there it is called for each write
        for entry in os.listdir("/proc/self/fd"):
            path = f"/proc/self/fd/{entry}"
            try:
                where = os.readlink(path)
                if "(deleted)" in where and not where.startswith(("/dev/shm/", "/memfd:")):
                    seen.append(where)
                    content = Path(path).read_bytes()
                    assert not any(form in content for form in _needle_forms())
            except FileNotFoundError:
                pass  # closed meanwhile

    with Session(route=route) as session:
        session.execute_code(_PRINT_MUCH, on_output=look)
    assert any(str(log_root) in where for where in seen)


def test_the_worker_has_no_key_in_its_environment_and_no_process_in_its_arguments(key_file: Path) -> None:
    code = "import os\nsorted(name for name in os.environ if name.startswith('TASK_LOG_') and 'KEY' in name)"
    with Session(route="worker", pass_env=["TASK_LOG_KEY"], isolation="none") as session:
        assert session.execute_code(code)["result"] == {"text/plain": "[]"}
        assert session.execute_code("import subprocess; subprocess.run(['env'])")["success"]
        for process in Path("/proc").glob("[0-9]*"):
            try:
                assert key_file.read_bytes() not in (process / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                pass  # gone meanwhile


@pytest.mark.parametrize("route", ["local", "worker"])
def test_a_session_refuses_a_plain_log_with_a_key_and_an_encrypted_one_without(
    route: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, no_leaks: None
) -> None:
    with Session(route=route, task_name="encrypted") as session:
        session.execute_code("x = 1")
    setting = os.environ["TASK_LOG_KEY"]
    monkeypatch.delenv("TASK_LOG_KEY")
    with Session(route=route, task_name="plain") as session:
        session.execute_code("x = 1")
    with pytest.raises(ConfigurationError, match="is encrypted"):
        Session(route=route, task_name="encrypted")
    monkeypatch.setenv("TASK_LOG_KEY", setting)
    with pytest.raises(ConfigurationError, match="are plain"):
        Session(route=route, task_name="plain")
    other = tmp_path / "other"
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{other}")
    with pytest.raises(KeyMissing):
        Session(route=route, task_name="encrypted")
    other.write_bytes(os.urandom(32))
    other.chmod(0o600)
    with pytest.raises(WrongKey):
        Session(route=route, task_name="encrypted")


def test_a_session_holds_its_key_when_the_file_is_gone(key_file: Path) -> None:
    with Session(route="local") as session:
        session.execute_code("x = 1")
        away = key_file.rename(key_file.with_name("away"))
        assert session.execute_code("x + 1")["debug_info"]["log"]["n"] == 2
        away.rename(key_file)


def test_a_session_goes_on_when_its_plan_gets_another_key(log_root: Path, tmp_path: Path) -> None:
    new = tmp_path / "new key"
    new.write_bytes(os.urandom(32))
    new.chmod(0o600)
    with Session(route="worker") as session:
        session.execute_code("x = 1")
        rekeyed = subprocess.run(
            [sys.executable, "-m", "task_logger", "rekey"],
            env=os.environ | {"TASK_LOG_NEW_KEY": f"file:{new}"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert rekeyed.returncode == 0, rekeyed.stderr
        (artifact,) = session.execute_code(_PRINT_MUCH)["artifacts"]
        own = session.artifact(b"bytes of the caller")
        assert [line["seq"] for line in session.history()] == [1, 2]
    key = KeySource(f"file:{new}")
    assert [type(line) for line in read_lines(session.log_path, key)] == [LogLine, LogLine]
    cipher = artifact_cipher(str(log_root / "P"), key)
    for reference in (artifact, own):
        with get(str(log_root / "P"), str(reference["sha256"]), cipher) as file:
            assert len(file.read()) == reference["bytes"]


def _serve(route: str, *requests: dict[str, object]) -> list[dict[str, Any]]:
    text = "".join(json.dumps({"jsonrpc": "2.0", **request}) + "\n" for request in requests)
    done = subprocess.run(
        [sys.executable, "-m", "json_repl"],
        input=text,
        env=os.environ | {"USE_SUBPROCESS_WORKER": str(int(route == "worker"))},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("route", ["local", "worker"])
def test_the_server_records_what_code_and_its_programs_write(route: str, log_root: Path) -> None:
    code = f"import os, subprocess\nsubprocess.run(['echo', {_NEEDLE!r}])\n"
    code += "os.write(1, b'x' * (3 << 20))\nprint('end')"
    ready, reply = _serve(route, {"id": 1, "method": "execute", "params": {"code": code}})
    assert reply["result"]["success"], reply
    (artifact,) = reply["result"]["artifacts"]
    with get(str(log_root / "P"), artifact["sha256"]) as file:
        content = file.read()
    assert content.startswith(_NEEDLE.encode() + b"\nxxx")
    assert content.endswith(b"end\n")
    assert len(content) == (3 << 20) + len(_NEEDLE) + 5
    assert _codes(ready["params"]["log"]) == [(code, "ok")]


def test_what_programs_write_themselves_passes_through_memory(log_root: Path) -> None:
    if not os.access("/dev/shm", os.W_OK) or shutil.disk_usage("/dev/shm").free < 2 << 30:
        pytest.skip("there is no /dev/shm with room for it")
    code = "import os; [os.readlink(f'/proc/self/fd/{number}') for number in (1, 2)]"
    _, reply = _serve("local", {"id": 1, "method": "execute", "params": {"code": code}})
    assert reply["result"]["result"]["text/plain"].count("/dev/shm/") == 2
    assert str(log_root) not in reply["result"]["result"]["text/plain"]


def test_what_a_killed_server_ran_gets_its_line_and_was_never_readable(log_root: Path) -> None:
    with subprocess.Popen([sys.executable, "-m", "json_repl"], stdin=-1, stdout=-1, text=True) as server:
        assert server.stdin is not None
        assert server.stdout is not None
        ready = json.loads(server.stdout.readline())
        code = f"print({_NEEDLE!r}, flush=True); import time; time.sleep(100)"
        request = {"jsonrpc": "2.0", "id": 1, "method": "execute", "params": {"code": code, "stream": True}}
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        assert _NEEDLE in server.stdout.readline()
        (pending,) = (log_root / "P" / "pending").iterdir()
        content = pending.read_bytes()
        assert b"sealed" in content
        assert not any(form in content for form in _needle_forms())
        server.send_signal(signal.SIGKILL)
    with Session(route="local"):
        pass
    assert _codes(ready["params"]["log"]) == [(code, "unknown")]


def test_what_is_observed_rather_than_run_is_encrypted_too(log_root: Path) -> None:
    task = TaskIds(plan_id="P", task_id="T-7", task_name="observed")
    log = ObservedLog(task, actor="jupyter", route="local", isolation="none")
    request = log.begin(f"x = {_NEEDLE!r}", {})
    assert _NEEDLE.encode() not in b"".join(
        path.read_bytes() for path in log_root.rglob("*") if path.is_file()
    )
    outcome = ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=1.0, stdout=f"{_NEEDLE}\n"
    )
    assert log.finish(request, outcome) is None
    log.close()
    assert _codes(log.path) == [(f"x = {_NEEDLE!r}", "ok")]
