"""A plan gets another key: headers change, nothing else does, whoever runs or dies meanwhile."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from task_logger import TaskLogger
from task_logger.encryption import cipher_to_write
from task_logger.errors import KeyMissing, LogUnavailable, WrongKey
from task_logger.keys import KeySource
from task_logger.log_file import LogFile
from task_logger.reader import LogLine, read_lines
from task_logger.rekeying import rekey


def _key(tmp_path: Path, name: str) -> KeySource:
    path = tmp_path / name
    if not path.exists():
        path.write_bytes(os.urandom(32))
        path.chmod(0o600)
    return KeySource(f"file:{path}")


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_root: Path) -> KeySource:
    key = _key(tmp_path, "old")
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{tmp_path / 'old'}")
    return key


@pytest.fixture
def new(tmp_path: Path) -> KeySource:
    return _key(tmp_path, "new")


def _write_logs(count: int) -> list[Path]:
    paths = []
    for number in range(1, count + 1):
        with TaskLogger("P", number, "name") as log:
            log.write({"code": f"line of log {number}", "stdout": "x" * (2 << 20) if number == 1 else ""})
            paths.append(Path(log.path))
    return paths


def _contents(plan: Path) -> dict[Path, bytes]:
    """Everything in a plan but its headers."""
    return {
        path: hashlib.sha256(path.read_bytes()).digest()
        for path in plan.rglob("*")
        if path.is_file() and path.parent.name != "keys"
    }


def _opens(paths: list[Path], key: KeySource) -> list[bool]:
    def opens(path: Path) -> bool:
        key.data_keys.clear()  # as a program that starts now
        try:
            return all(isinstance(line, LogLine) for line in read_lines(str(path), key))
        except WrongKey:
            return False

    return [opens(path) for path in paths]


def test_only_the_new_key_opens_a_plan_whose_logs_are_unchanged(
    log_root: Path, old: KeySource, new: KeySource
) -> None:
    paths = _write_logs(3)
    before = _contents(log_root / "P")
    done = rekey(str(log_root / "P"), old, new)
    assert (done.wrapped, done.already) == (4, 0)
    assert _contents(log_root / "P") == before
    assert _opens(paths, new) == [True] * 3
    assert _opens(paths, old) == [False] * 3
    again = rekey(str(log_root / "P"), old, new)
    assert (again.wrapped, again.already) == (0, 4)


def test_a_session_that_runs_meanwhile_goes_on(log_root: Path, old: KeySource, new: KeySource) -> None:
    with TaskLogger("P", 1, "name") as log:
        log.write({"code": "before"})
        rekey(str(log_root / "P"), old, new)
        log.write({"code": "after", "stdout": "x" * (2 << 20)})
        with pytest.raises(WrongKey):  # with its old key it opens no other log
            TaskLogger("P", 2, "name")
    lines = list(read_lines(log.path, new))
    assert len(lines) == 2
    assert all(isinstance(line, LogLine) for line in lines)


def test_with_neither_key_nothing_changes(
    log_root: Path, tmp_path: Path, old: KeySource, new: KeySource
) -> None:
    _write_logs(2)
    headers = {path: path.read_bytes() for path in (log_root / "P" / "keys").iterdir()}
    with pytest.raises(WrongKey):
        rekey(str(log_root / "P"), _key(tmp_path, "third"), new)
    assert {path: path.read_bytes() for path in (log_root / "P" / "keys").iterdir()} == headers


def test_a_passphrase_replaces_a_key_and_is_replaced(log_root: Path, old: KeySource) -> None:
    paths = _write_logs(2)
    first, second = KeySource("first passphrase"), KeySource("second passphrase")
    rekey(str(log_root / "P"), old, first)
    assert _opens(paths, KeySource("first passphrase")) == [True] * 2
    rekey(str(log_root / "P"), first, second)
    assert _opens(paths, KeySource("second passphrase")) == [True] * 2
    rekey(str(log_root / "P"), second, old)
    assert _opens(paths, old) == [True] * 2


def test_a_plan_without_encryption_and_a_second_run_at_once_are_refused(
    log_root: Path, old: KeySource, new: KeySource
) -> None:
    with pytest.raises(KeyMissing, match="nothing in"):
        rekey(str(log_root / "P"), old, new)
    _write_logs(1)
    import fcntl

    descriptor = os.open(log_root / "P" / "keys", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    with pytest.raises(LogUnavailable, match="another rekey"):
        rekey(str(log_root / "P"), old, new)
    os.close(descriptor)
    rekey(str(log_root / "P"), old, new)


def _command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "task_logger", "rekey", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_command_takes_both_keys_from_the_environment(
    log_root: Path, tmp_path: Path, old: KeySource, new: KeySource
) -> None:
    paths = _write_logs(2)
    missing = _command()
    assert (missing.returncode, missing.stderr.count("\n")) == (2, 1)
    assert "TASK_LOG_NEW_KEY" in missing.stderr
    done = _command(TASK_LOG_NEW_KEY=f"file:{tmp_path / 'new'}")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "P: 3 data keys wrapped by the new key\n"
    assert _opens(paths, new) == [True] * 2
    lost = _command("--plan", "P", TASK_LOG_NEW_KEY=f"file:{tmp_path / 'old'}")
    assert (lost.returncode, lost.stdout) == (1, "")
    assert "is another key" in lost.stderr
    assert _opens(paths, new) == [True] * 2


def test_a_run_that_was_killed_is_finished_by_the_next(
    log_root: Path, tmp_path: Path, old: KeySource, new: KeySource
) -> None:
    _write_logs(1)
    keys = log_root / "P" / "keys"
    paths = [log_root / "P" / f"{number}.name.jsonl" for number in range(1, 41)]
    for path in paths[1:]:
        log = LogFile(str(path), cipher=cipher_to_write(str(path), old))
        log.append(b'{"code":"x"')
        log.close()
    names = sorted(name for name in os.listdir(keys))
    for done in (0, 1, 20, 40, 41):
        before, after = ("old", "new") if _opens(paths[:1], old) == [True] else ("new", "old")
        killed = subprocess.run(
            [sys.executable, "-c", _REKEY_UNTIL_KILLED, str(done)],
            env=os.environ
            | {"TASK_LOG_KEY": f"file:{tmp_path / before}", "TASK_LOG_NEW_KEY": f"file:{tmp_path / after}"},
            stdout=subprocess.DEVNULL,
            check=False,
        )
        assert killed.returncode == (0 if done == 41 else -signal.SIGKILL)  # there are 41 headers
        opened = [_opens(paths, _key(tmp_path, name)) for name in ("old", "new")]
        assert [one or other for one, other in zip(*opened, strict=True)] == [True] * len(paths)
        assert (any(opened[0]) and any(opened[1])) == (done in (1, 20))  # the last is that of the plan
        rekey(str(log_root / "P"), _key(tmp_path, before), _key(tmp_path, after))
        assert _opens(paths, _key(tmp_path, after)) == [True] * len(paths)
    assert sorted(name for name in os.listdir(keys) if not name.endswith(".tmp")) == names


_REKEY_UNTIL_KILLED = """
import os, signal, sys
from task_logger.cli import main

rename, left = os.rename, int(sys.argv[1])

def rename_or_die(*paths):
    global left
    if not left:
        os.kill(os.getpid(), signal.SIGKILL)
    left -= 1
    rename(*paths)

os.rename = rename_or_die
sys.exit(main(["rekey"]))
"""


def test_a_header_that_cannot_be_written_leaves_the_old_one(
    log_root: Path, old: KeySource, new: KeySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = _write_logs(1)

    def refuse(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refuse)
        with pytest.raises(LogUnavailable):
            rekey(str(log_root / "P"), old, new)
    assert _opens(paths, old) == [True]
    assert [name for name in os.listdir(log_root / "P" / "keys") if name.endswith(".tmp")] == []
