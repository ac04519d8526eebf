"""What can't be read is told as it is, and left as it is; what can is planned and checked without a run."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from json_repl.replay import dry_run, load_recording
from json_repl.replay.errors import NothingToReplay
from json_repl.replay.text import summary_lines
from json_repl.session import Session
from task_logger import TaskLogger
from task_logger.codec import FIRST_PREV, seal
from task_logger.compression import compress_log
from task_logger.errors import EncryptedLine, LogNotFound, TaskLogError, UnsupportedSchema
from tests.json_repl.replay.recorded_logs import change, record, replayed, verdicts

UNREADABLE = {
    "bytes of something else": (
        b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        NothingToReplay,
        "nothing to replay",
    ),
    "JSON lines of others": (b'{"cell": 1}\n{"cell": 2}\n', NothingToReplay, "nothing to replay"),
    "an empty file": (b"", NothingToReplay, "it is empty"),
    "an encrypted line": (
        seal(b'{"schema":1,"enc":"A256GCM","key_id":"k","data":"AAAA"', 1, FIRST_PREV)[0],
        EncryptedLine,
        "encrypted",
    ),
    "an encrypted line without a hash": (b'{"enc":"A256GCM","data":"AAAA"}\n', EncryptedLine, "encrypted"),
}


def replay(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command in a process of its own, which it shields."""
    command = [sys.executable, "-m", "json_repl", "replay", *map(str, arguments)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("mode", ["--dry-run", "--live"])
def test_what_cannot_be_read_is_a_clear_error_and_stays_untouched(
    kind: str, mode: str, tmp_path: Path
) -> None:
    data, error, words = UNREADABLE[kind]
    path = tmp_path / "recording.exec.jsonl"
    path.write_bytes(data)
    before = path.stat()
    ended = replay(path, mode)
    assert (ended.returncode, ended.stdout) == (2, "")
    (line,) = ended.stderr.splitlines()
    assert words in line
    assert str(path) in line
    with pytest.raises(error):
        load_recording(str(path))
    after = path.stat()
    assert path.read_bytes() == data
    assert (after.st_mtime_ns, after.st_ino, after.st_size) == (
        before.st_mtime_ns,
        before.st_ino,
        before.st_size,
    )


@pytest.mark.foreign_lines
def test_a_line_of_a_newer_version_is_an_error_and_one_with_new_fields_is_none(
    log_root: Path, tmp_path: Path
) -> None:
    path = record(["x = 1", "x"])

    def newer(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line | {"schema": 2} for line in lines]

    def wider(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line | {"mood": "good"} for line in lines]

    other = change(path, tmp_path / "other" / "1.x.jsonl", newer)
    before = other.read_bytes()
    with pytest.raises(UnsupportedSchema):
        dry_run(str(other))
    ended = replay(other, "--live")
    assert ended.returncode == 2
    assert "schema 2" in ended.stderr
    assert other.read_bytes() == before
    assert verdicts(replayed(change(path, tmp_path / "other" / "2.x.jsonl", wider))) == ["MATCH", "MATCH"]


def test_what_is_not_there_is_said_to_be_not_there(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        load_recording(str(tmp_path / "none.jsonl"))
    ended = replay(tmp_path / "none.jsonl")
    assert ended.returncode == 2
    assert "there is no task log" in ended.stderr
    with pytest.raises(TaskLogError):
        load_recording(str(tmp_path))


def test_an_edited_recording_is_read_the_same_when_it_is_compressed(log_root: Path, tmp_path: Path) -> None:
    def edited(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [line | {"code": line["code"] + "0"} for line in lines]

    path = change(record(["1", "2"]), tmp_path / "other" / "1.x.jsonl", edited, is_chained=False)
    plain = load_recording(str(path))
    assert [line.record.request.code for line in plain.lines] == ["10", "20"]
    compressed = load_recording(compress_log(str(path)).path)
    assert compressed.faults == plain.faults
    assert [line.record.request.code for line in compressed.lines] == ["10", "20"]


def test_an_altered_line_of_an_encrypted_recording_ends_nothing(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key"
    key.write_text("ab" * 32)
    key.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{key}")
    folder = shutil.copytree(record(["1", "2", "3"]).parent, tmp_path / "other")
    (path,) = folder.glob("*.jsonl")
    lines = path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"data":"', b'"data":"A')
    path.write_bytes(b"".join(lines))
    recording = load_recording(str(path))
    assert [line.number for line in recording.lines] == [1, 3]
    faults = [(fault.number, fault.kind) for fault in recording.faults]
    assert faults == [(2, "unreadable"), (3, "chain_break")]
    monkeypatch.delenv("TASK_LOG_KEY")
    path.write_bytes(record(["1"], task_name="plain").read_bytes())
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{key}")
    assert [fault.reason for fault in load_recording(str(path)).faults] == [
        "it is plain, in an encrypted log"
    ]


def test_a_broken_chain_and_a_torn_tail_are_told_and_end_nothing(log_root: Path, tmp_path: Path) -> None:
    lines = record([f"{n}" for n in range(6)]).read_bytes().splitlines(keepends=True)
    path = tmp_path / "other" / "1.x.jsonl"
    path.parent.mkdir()
    path.write_bytes(b"".join([*lines[:2], *lines[3:5], b"not json\n", lines[5][:100]]))
    report = replayed(path)
    assert [(fault.number, fault.kind) for fault in report.faults] == [
        (3, "chain_break"),
        (3, "gap"),
        (5, "unreadable"),
        (6, "torn_tail"),
    ]
    assert verdicts(report) == ["MATCH"] * 4
    assert [step.number for step in report.steps] == [1, 2, 3, 4]
    assert any(
        "100 % of what was compared matches; 2 lines can't be read" in line for line in summary_lines(report)
    )


def test_a_dry_run_runs_nothing_and_says_what_would_not_run(log_root: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    with TaskLogger("P-1", 7, "mixed") as log:
        log.write({"code": f"open({str(made)!r}, 'w')", "actor": "a", "session_id": SESSION, "seq": 1})
        log.write({"code": "x = (1,\ny = 2", "actor": "a", "session_id": SESSION, "seq": 2})
        log.write({"code": "make test", "session_id": SESSION, "seq": 3})
        log.write({"code": "await x", "actor": "a", "session_id": SESSION, "seq": 4})
        log.write(
            {
                "code": "1",
                "actor": "a",
                "session_id": SESSION,
                "seq": 5,
                "status": "unknown",
                "success": False,
            }
        )
        log.write({"code": "1", "actor": "a", "session_id": SESSION, "seq": 6, "parent": f"{OTHER}:3"})
    (path,) = log_root.glob("*/*.jsonl")
    report = dry_run(str(path))
    assert verdicts(report) == ["READY", "DIFF", "SKIP", "READY", "SKIP", "SKIP"]
    assert (report.steps[1].differences[0].field, report.steps[1].differences[0].line) == ("code", 1)
    assert [(step.reason or "")[:20] for step in report.steps if step.verdict == "SKIP"] == [
        "it was written by an",
        "nobody knows how it ",
        "it starts from " + OTHER[:5],
    ]
    assert not made.exists()
    assert report.match_percent is None  # nothing was compared, so nothing matches


SESSION = "01990000-0000-7000-8000-000000000001"
OTHER = "01990000-0000-7000-8000-000000000002"


def test_one_session_of_a_log_is_replayed_by_the_start_of_its_id(log_root: Path) -> None:
    ids = []
    for code in ("x = 1", "x = 2"):
        with Session("worker", task_id="T-1") as session:
            session.execute_code(code)
            ids.append(session.session_id)
    path = session.log_path
    assert [step.session_id for step in dry_run(path, ids[1]).steps] == [ids[1]]
    assert [line.record.request.code for line in load_recording(path, ids[0][:-1]).lines] == ["x = 1"]
    with pytest.raises(NothingToReplay, match=ids[0]):
        load_recording(path, "ffff")
    assert replay(path, "--session", "ffff").returncode == 2


def test_the_same_execution_twice_counts_once(log_root: Path, tmp_path: Path) -> None:
    path = record(["x = 1", "x"])
    other = change(path, tmp_path / "other" / "1.x.jsonl", lambda lines: [*lines, lines[1]])
    report = dry_run(str(other))
    assert verdicts(report) == ["READY", "READY"]
    assert [(fault.number, fault.kind) for fault in report.faults] == [(3, "twice")]


def mutate_second(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    lines[1]["stdout"] = "<script>alert(1)</script>\x1b[2J\n"
    lines[1]["diff_complete"] = False
    return lines


def test_the_command_tells_the_place_writes_reports_and_exits_with_1(log_root: Path, tmp_path: Path) -> None:
    path = record(["x = 1", "print('<script>')", "x"])
    ended = replay(path, "--live")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "live: 3 MATCH; 100 % of what was compared matches" in ended.stdout
    other = change(path, tmp_path / "other" / "1.x.jsonl", mutate_second)
    for kind in ("html", "json", "md"):
        report = tmp_path / f"report.{kind}"
        ended = replay(other, "--live", "--isolation", "process", "--report", report)
        assert (ended.returncode, ended.stderr) == (1, "")
        assert f"{other}:2: stdout differs, line 1, column 9" in ended.stdout
        assert "\x1b" not in ended.stdout
        shown = [
            line for line in ended.stdout.splitlines() if line.endswith(("<script>", "^")) or "alert" in line
        ]
        recorded, caret, replayed_line, _ = shown
        assert caret.index("^") == recorded.index("alert") == replayed_line.index("<script>") + 8
        text = report.read_text(encoding="utf-8")
        if kind == "html":
            assert "<script>alert" not in text
            assert '<link rel=icon href="data:,">' in text
            assert "http" not in text
            assert "changed_vars not compared in" in text
        elif kind == "json":
            assert json.loads(text)["steps"][1]["differences"][0]["column"] == 9
        else:
            assert "stdout differs" in text
    same = tmp_path / "other" / "same.json"
    same.symlink_to(other)
    for wrong in (
        ("--report", "x.pdf"),
        ("--report", same),
        ("--live", "--report", tmp_path / "nowhere" / "report.html"),
        ("--live", "--max-seconds", "nan"),
        ("--live", "--normalize", "nothing"),
        ("--from", "9"),
    ):
        ended = replay(other, *wrong)
        assert (ended.returncode, ended.stdout) == (2, ""), wrong
        assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("mode", ["--dry-run", "--live"])
def test_an_output_that_is_full_is_one_line(mode: str, log_root: Path) -> None:
    path = record(["x = 1"])
    command = [sys.executable, "-m", "json_repl", "replay", str(path), mode, "--isolation", "none"]
    with open("/dev/full", "w") as full:
        ended = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (ended.returncode, len(ended.stderr.splitlines())) == (2, 1), ended.stderr


def test_a_replay_that_compares_nothing_does_not_pass(log_root: Path) -> None:
    with TaskLogger("P-1", 7, "others") as log:
        log.write({"code": "make test"})
    (path,) = log_root.glob("*/*.jsonl")
    ended = replay(path, "--live")
    assert ended.returncode == 2
    assert "nothing was compared" in ended.stderr
    assert "SKIP" in ended.stdout
    path = record(["x = 1", "x", "x"])
    ended = replay(path, "--live", "--isolation", "process", "--from", 3, "--max-executions", 1)
    assert ended.returncode == 2
    assert "before anything was compared" in ended.stderr
    assert "--from 3 goes on" in ended.stdout
