"""Recordings that are encrypted, and those that secrets were taken out of."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from json_repl.replay import dry_run, load_recording
from json_repl.replay.secrets import MAX_VALUES
from task_logger.errors import KeyMissing, WrongKey
from tests.json_repl.replay.recorded_logs import change, record, replayed, told, verdicts

pytestmark = pytest.mark.usefixtures("no_leaks")

TOKEN = "tok-4uQ9w2LmZx71"
OWN = "a-thing-nobody-guesses-77"
CODES = (
    f"token = {TOKEN!r}\nprint(token)\ntoken",
    "len(token)",
    "print((token + ' ') * 70_000)",
    "raise ValueError(token)",
    f"own = {OWN!r}; own",
    f"# {'long ' * 220_000}\nprint({TOKEN!r}[::-1] == token[::-1])",
)


@pytest.fixture
def redacted(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recording of a plan with two secrets: one that its name tells, and one of the session's own."""
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    monkeypatch.setenv("MY_THING", OWN)
    path = record(CODES, redact={"MY_THING": OWN})
    files = [each.read_bytes() for each in log_root.rglob("*") if each.is_file()]
    assert not any(secret.encode() in data for data in files for secret in (TOKEN, OWN))
    return path


def listing(root: Path) -> dict[str, tuple[int, int]]:
    """What is there, and when each file was changed."""
    return {
        str(path): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in root.rglob("*")
        if path.is_file()
    }


def test_secrets_are_put_back_from_the_environment_and_compared_as_placeholders(
    redacted: Path, log_root: Path
) -> None:
    before = listing(log_root)
    report = replayed(redacted)
    assert verdicts(report) == ["MATCH"] * len(CODES), told(report)
    assert listing(log_root) == before
    assert verdicts(dry_run(str(redacted))) == ["READY"] * len(CODES)


def test_without_the_right_secret_the_code_is_skipped_and_the_reason_names_it(
    redacted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", f"{TOKEN}0")
    monkeypatch.delenv("MY_THING")
    skipped = [step for step in replayed(redacted).steps if step.verdict == "SKIP"]
    reason = "a secret was in its code, and the environment has it not, or another one: "
    assert [(step.number, step.reason) for step in skipped] == [
        (1, f"{reason}SERVICE_TOKEN"),
        (5, f"{reason}MY_THING"),
        (6, f"{reason}SERVICE_TOKEN"),
    ]
    checked = [step for step in dry_run(str(redacted)).steps if step.verdict == "SKIP"]
    assert [(step.number, step.reason) for step in checked][:2] == [
        (step.number, step.reason) for step in skipped[:2]
    ]


def test_without_the_plans_key_of_placeholders_nothing_is_put_back_and_none_is_made(
    redacted: Path, log_root: Path
) -> None:
    (key,) = log_root.rglob("redaction.key")
    key.unlink()
    before = listing(log_root)
    first = replayed(redacted).steps[0]
    assert first.verdict == "SKIP"
    assert "keys/redaction.key" in (first.reason or "")
    assert listing(log_root) == before


def test_a_difference_tells_no_secret(redacted: Path) -> None:
    def changed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[0]["stdout"] = "something else\n"
        return lines

    other = change(redacted, redacted.parent / "2.changed.jsonl", changed)
    step = replayed(other).steps[0]
    assert [each.field for each in step.differences] == ["stdout"]
    assert "SERVICE_TOKEN" in step.differences[0].replayed
    assert TOKEN not in repr(step)


@pytest.mark.foreign_lines
def test_a_recording_that_guesses_a_secret_by_its_tags_is_not_given_it(redacted: Path) -> None:
    def guessing(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        tags = [f"⟨secret:SERVICE_TOKEN:{tag:04x}⟩" for tag in range(MAX_VALUES)]
        lines[1]["code"] = f"found = {tags!r}"
        return lines

    other = change(redacted, redacted.parent / "2.changed.jsonl", guessing)
    step = replayed(other).steps[1]
    assert step.verdict == "SKIP"
    assert "as if to guess it" in (step.reason or "")


def test_a_session_that_kept_its_secrets_replays_too(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    path = record(CODES[:4], redact=False)
    assert TOKEN in path.read_text(encoding="utf-8")
    report = replayed(path)
    assert verdicts(report) == ["MATCH"] * 4, told(report)


def replay(path: Path, mode: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "json_repl", "replay", str(path), mode, "--isolation", "process"]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)


def test_an_encrypted_recording_replays_with_its_key_and_is_one_clear_error_without(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [tmp_path / "key", tmp_path / "other key"]
    for key in keys:
        key.write_bytes(os.urandom(32))
        key.chmod(0o600)
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{keys[0]}")
    monkeypatch.setenv("SERVICE_TOKEN", TOKEN)
    path = record(["x = 'clear'; x", *CODES[:4], CODES[5]])
    before = listing(log_root)
    assert b"clear" not in path.read_bytes()
    report = replayed(path)
    assert verdicts(report) == ["MATCH"] * 6, told(report)
    for setting, error in ((None, KeyMissing), (f"file:{keys[1]}", WrongKey), ("file:/nowhere", KeyMissing)):
        if setting is None:
            monkeypatch.delenv("TASK_LOG_KEY")
        else:
            monkeypatch.setenv("TASK_LOG_KEY", setting)
        with pytest.raises(error):
            load_recording(str(path))
        for mode in ("--dry-run", "--live"):
            ended = replay(path, mode)
            assert (ended.returncode, ended.stdout) == (2, ""), ended
            (line,) = ended.stderr.splitlines()
            assert "TASK_LOG_KEY" in line
    assert listing(log_root) == before
