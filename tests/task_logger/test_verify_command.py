"""What `task-log verify` prints, and how it exits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from task_logger.codec import FIRST_PREV, seal
from task_logger.log_file import LogFile
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog

TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="user login")
SESSION_ID = "0190163d-8694-739b-aea5-966c26f8ad91"


def request(seq: int, task: TaskIds = TASK) -> ExecutionRequest:
    return ExecutionRequest(
        task=task, session_id=SESSION_ID, seq=seq, timestamp="2026-01-31T23:59:59.999Z", code=f"x = {seq}"
    )


def outcome(**fields: Any) -> ExecutionOutcome:
    return ExecutionOutcome(status="ok", route="worker", isolation="process", **{"elapsed_ms": 1.0, **fields})


def write(root: Path, count: int = 5, task: TaskIds = TASK, **fields: Any) -> tuple[Path, str]:
    """Write a session's lines; returns the log and its head."""
    log = SessionLog(root=str(root), task=task, session_id=SESSION_ID)
    for seq in range(1, count + 1):
        log.begin(request(seq, task))
        record = log.finish(request(seq, task), outcome(**fields))
    log.close()
    assert record.head is not None
    return Path(log.path), f"{record.head.n}:{record.head.hash}"


def verify(*arguments: str | Path, root: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "task_logger", "verify", *map(str, arguments)],
        env={**os.environ, "TASK_LOG_DIR": str(root), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_whole_root_a_plan_and_a_log_can_be_verified(tmp_path: Path) -> None:
    log, head = write(tmp_path)
    write(tmp_path, task=TaskIds(plan_id="P-2", task_id="T-1", task_name="other"))
    for target, logs in (((), 2), (("P-1",), 1), ((tmp_path / "P-1",), 1), ((tmp_path,), 2), ((log,), 1)):
        done = verify(*target, root=tmp_path)
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.count("\nyes  ") + done.stdout.startswith("yes  ") == logs
        assert "What this can't show:" in done.stdout
        assert "the whole chain was made anew" in done.stdout
    for where in (("--plan", "P-1", "--task", "T-7"), ("--plan", "P-1")):
        done = verify(*where, "--head", head, "--strict", root=tmp_path)
        assert done.returncode == 0, done.stdout
        assert "complete up to line 5" in done.stdout


def test_what_cannot_be_proven_is_a_no_only_when_asked_strictly(tmp_path: Path) -> None:
    log, head = write(tmp_path)
    assert verify(log, root=tmp_path).returncode == 0
    strict = verify(log, "--strict", root=tmp_path)
    assert strict.returncode == 1
    assert "completeness: line 5 at byte" in strict.stdout
    assert verify(log, "--strict", "--head", head, root=tmp_path).returncode == 0


def test_a_problem_is_named_with_line_and_byte_and_exits_with_1(tmp_path: Path) -> None:
    log, _ = write(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    at = sum(map(len, lines[:2]))
    lines[2] = lines[2].replace(b"x = 3", b"x = 9")
    log.write_bytes(b"".join(lines))
    done = verify(root=tmp_path)
    assert done.returncode == 1
    assert f"problem: altered: line 3 at byte {at}: " in done.stdout
    (told,) = [json.loads(line) for line in verify("--json", root=tmp_path).stdout.splitlines()]
    assert (told["ok"], told["counts"]["problem"], told["unsynced_tail_possible"]) == (False, 1, True)
    (found,) = [one for one in told["findings"] if one["level"] == "problem"]
    assert (found["kind"], found["line"], found["at"], found["n"]) == ("altered", 3, at, 3)
    assert told["cannot_show"]


def test_an_artifact_that_is_gone_is_named(tmp_path: Path) -> None:
    log, _ = write(tmp_path, count=2, stdout="long\n" * (1 << 20))
    assert verify(log, root=tmp_path).returncode == 0
    (stored,) = (path for path in (tmp_path / "P-1" / "artifacts").rglob("*") if path.is_file())
    stored.unlink()
    done = verify(log, root=tmp_path)
    assert done.returncode == 1
    assert done.stdout.count("artifact_missing: line ") == 2


_DIES = """
import os, sys
sys.path.insert(0, sys.argv[2])
from test_verify_command import TASK, SESSION_ID, request
from task_logger.session_log import SessionLog
log = SessionLog(root=sys.argv[1], task=TASK, session_id=SESSION_ID)
log.begin(request(9))
os.kill(os.getpid(), 9)
"""


def test_pending_executions_are_looked_at(tmp_path: Path) -> None:
    log, _ = write(tmp_path)
    running = SessionLog(root=str(tmp_path), task=TASK, session_id=SESSION_ID.replace("0190", "0191"))
    running.begin(request(8))
    done = verify(log, root=tmp_path)
    assert done.returncode == 0
    assert "note: pending_running: " in done.stdout
    running.finish(request(8), outcome())
    running.close()
    subprocess.run([sys.executable, "-c", _DIES, tmp_path, Path(__file__).parent], check=False)
    done = verify(root=tmp_path)
    assert done.returncode == 0
    assert f"unproven: pending_unsettled: {tmp_path}/P-1/pending/" in done.stdout
    assert f"execution {SESSION_ID}:9" in done.stdout
    assert verify("--strict", root=tmp_path).returncode == 1
    log.write_bytes(log.read_bytes().splitlines(keepends=True)[0])
    assert "problem: truncated: " in verify(root=tmp_path).stdout
    log.unlink()
    write(tmp_path, task=TaskIds(plan_id="P-1", task_id="T-8", task_name="x"))
    done = verify("P-1", root=tmp_path)
    assert done.returncode == 1
    assert "problem: log_missing: " in done.stdout


def test_what_a_dead_session_left_that_makes_no_sense_is_named(tmp_path: Path) -> None:
    log, head = write(tmp_path)
    left = log.parent / "pending" / SESSION_ID
    left.write_bytes(b"no pending file\n")
    done = verify("P-1", "--head", head, "--json", root=tmp_path)
    *_, finding = map(json.loads, done.stdout.splitlines())
    assert (finding["kind"], finding["level"], finding["path"]) == (
        "pending_unreadable",
        "unproven",
        str(left),
    )
    assert verify("P-1", "--head", head, "--strict", root=tmp_path).returncode == 1


def test_sealed_logs_are_checked_with_their_key_and_without_it_that_is_said(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    code = (
        "from task_logger import TaskLogger\nwith TaskLogger('P-1', 7, 'x') as log: log.write({'code': 'y'})"
    )
    setting = {"TASK_LOG_SEAL_KEY": f"file:{key}"}
    environment = {**os.environ, "TASK_LOG_DIR": str(tmp_path / "logs"), **setting}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    done = verify(root=tmp_path / "logs", **setting)
    assert done.returncode == 0
    assert "each checked with a key (seal)" in done.stdout
    assert "the whole chain was made anew" not in done.stdout
    done = verify(root=tmp_path / "logs")
    assert done.returncode == 0
    assert "unproven: seal_unchecked" in done.stdout
    assert "the whole chain was made anew" in done.stdout


@pytest.mark.parametrize("head", ["5", "0:" + "0" * 64, "5:abc", "x:" + "0" * 64])
def test_a_head_that_is_none_is_wrong_usage(tmp_path: Path, head: str) -> None:
    log, _ = write(tmp_path)
    done = verify(log, "--head", head, root=tmp_path)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_a_head_of_several_logs_and_logs_that_are_not_there_are_refused(tmp_path: Path) -> None:
    _, head = write(tmp_path)
    write(tmp_path, task=TaskIds(plan_id="P-2", task_id="T-1", task_name="other"))
    assert verify("--head", head, root=tmp_path).returncode == 2
    for target in ("P-9", tmp_path / "no.jsonl", tmp_path / "P-1" / "pending"):
        done = verify(target, root=tmp_path)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), target


def test_another_file_where_a_log_should_be_does_not_end_the_verification_of_the_rest(tmp_path: Path) -> None:
    write(tmp_path)
    os.mkfifo(tmp_path / "P-1" / "1.pipe.jsonl")
    LogFile(str(tmp_path / "P-1" / "9.empty.jsonl")).close()
    done = verify(root=tmp_path)
    assert done.returncode == 1
    assert "can't be verified" in done.stdout
    assert done.stdout.count("yes  ") == 2


def test_an_encrypted_logs_chain_is_checked_without_the_key_and_each_line_with_it(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_bytes(os.urandom(32))
    key.chmod(0o600)
    setting = {"TASK_LOG_KEY": f"file:{key}"}
    root = tmp_path / "logs"
    code = (
        "from task_logger import TaskLogger\n"
        "with TaskLogger('P-1', 7, 'x') as log:\n"
        "    for n in range(5): log.write({'code': f'n = {n}', 'stdout': 'y' * (n // 4 * 2_000_000)})\n"
    )
    environment = {**os.environ, "TASK_LOG_DIR": str(root), **setting}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    with_key = verify(root=root, **setting)
    assert with_key.returncode == 0, with_key.stdout
    assert "each checked with a key (A256GCM)" in with_key.stdout
    without = verify(root=root)
    assert without.returncode == 0, without.stdout
    assert "unproven: not_decrypted: 5 encrypted lines" in without.stdout
    # Anyone can make the chain anew, here with lines 2 and 3 exchanged, but not the encrypted lines.
    log = root / "P-1" / "7.x.jsonl"
    bodies = [line[: line.index(b',"n":')] for line in log.read_bytes().splitlines()]
    bodies[1], bodies[2] = bodies[2], bodies[1]
    prev, anew = FIRST_PREV, []
    for number, body in enumerate(bodies, 1):
        line, prev = seal(body, number, prev)
        anew.append(line)
    log.write_bytes(b"".join(anew))
    assert verify(root=root).returncode == 0
    forged = verify(root=root, **setting)
    assert forged.returncode == 1
    assert forged.stdout.count("problem: forged: line 2 at") == 1
    assert forged.stdout.count("problem: forged: line 3 at") == 1
    assert forged.stdout.count("problem: ") == 2
    for stored in (root / "P-1" / "artifacts").rglob("*"):
        if stored.is_file():
            stored.unlink()
    assert "artifact_missing: line 5" in verify(root=root, **setting).stdout
    # Without its header nobody can tell whether the key was used at all.
    (root / "P-1" / "keys" / "7.x.key").unlink()
    assert verify(root=root).returncode == 0
    headless = verify(root=root, **setting)
    assert headless.returncode == 1
    assert "problem: not_decrypted: 5 encrypted lines can't be opened" in headless.stdout
