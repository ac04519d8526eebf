"""An encrypted log shows nothing without its key, and with it reads like any other."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import subprocess
import sys
from base64 import b64decode, b64encode
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from task_logger import TaskLogger
from task_logger.artifacts import get
from task_logger.cli import main
from task_logger.codec import seal
from task_logger.encryption import MAX_SEALED_BODY_BYTES, cipher_to_read, cipher_to_write
from task_logger.errors import (
    ConfigurationError,
    KeyMalformed,
    KeyMissing,
    KeyPermissions,
    KeyRefused,
    LogUnavailable,
    WrongKey,
)
from task_logger.keys import KeySource
from task_logger.log_file import LogFile
from task_logger.reader import Damage, LogLine, LogReader, pending_of, read_lines, read_records
from task_logger.record import ExecutionOutcome, ExecutionRecord, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.tail import MAX_LINE_BYTES
from task_logger.writer import new_session_id
from tests.task_logger.log_check import check_log

_TASK = TaskIds(plan_id="P", task_id="T-1", task_name="name")
_OK = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)
_SECRET = "the needle that nobody may find"


class _Session:
    """A session log, and the requests of one session."""

    def __init__(self, root: Path, key: KeySource | None, **options: Any) -> None:
        self.session_id = new_session_id()
        self.log = SessionLog(root=str(root), task=_TASK, session_id=self.session_id, key=key, **options)
        self.seq = 0

    def begin(self, code: str = _SECRET, timestamp: str = "2026-11-20T10:00:00.000Z") -> ExecutionRequest:
        self.seq += 1
        request = ExecutionRequest(
            code=code, session_id=self.session_id, seq=self.seq, task=_TASK, timestamp=timestamp
        )
        self.log.begin(request)
        return request

    def run(self, code: str = _SECRET, outcome: ExecutionOutcome = _OK) -> ExecutionRecord:
        return self.log.finish(self.begin(code), outcome)

    def die(self) -> None:
        """Let go of everything, as the kernel does for a process that is gone."""
        self.log._files.close(remove_pending=False)


def _log_path(root: Path) -> Path:
    return root / "P" / "1.name.jsonl"


def _key_file(folder: Path, name: str = "key") -> Path:
    path = folder / name
    path.write_bytes(os.urandom(32))
    path.chmod(0o600)
    return path


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    return _key_file(tmp_path)


@pytest.fixture
def key(key_file: Path, monkeypatch: pytest.MonkeyPatch) -> KeySource:
    """A key of a file, which is also that of the environment."""
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{key_file}")
    return KeySource(f"file:{key_file}")


@pytest.fixture
def log(log_root: Path, key: KeySource) -> Path:
    """An encrypted log of three lines."""
    session = _Session(log_root, key)
    for number in range(3):
        session.run(f"{_SECRET} {number}")
    session.log.close()
    return _log_path(log_root)


def _tree(root: Path) -> dict[str, str]:
    """Every file below a folder, and what is in it."""
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in root.rglob("*") if path.is_file()
    }


def _nothing_is_readable(root: Path, text: str = _SECRET) -> None:
    forms = [text.encode(), text.encode().hex().encode()]
    forms += [b64encode(text.encode()[start:])[4:-4] for start in range(3)]
    for path in root.rglob("*"):
        assert text not in path.name
        if path.is_file():
            content = path.read_bytes()
            assert [form for form in forms if form in content] == []


# Lines


def test_a_line_shows_its_place_in_the_chain_the_key_and_nothing_else(log: Path) -> None:
    for number, text in enumerate(log.read_text().splitlines(), 1):
        line = json.loads(text)
        assert list(line) == ["schema", "enc", "key_id", "data", "n", "prev", "hash"]
        assert (line["schema"], line["enc"], line["n"]) == (1, "A256GCM", number)
        assert line["key_id"] == json.loads((log.parent / "keys" / "1.name.key").read_text())["key_id"]
    _nothing_is_readable(log.parent)


def test_what_the_length_of_a_line_tells_is_its_plain_length(log: Path) -> None:
    for line, stored in zip(read_lines(str(log)), log.read_bytes().splitlines(), strict=True):
        assert isinstance(line, LogLine)
        plain_bytes = line.data.rfind(b',"n":') + 1
        assert len(b64decode(json.loads(stored)["data"])) == 12 + plain_bytes + 16


def test_the_header_shows_how_the_key_is_wrapped_and_nothing_else(log: Path) -> None:
    for name in ("plan.key", "1.name.key"):
        path = log.parent / "keys" / name
        header = json.loads(path.read_text())
        assert list(header) == ["schema", "key_id", "file_id", "wrap", "wrapped", "by", "kdf"]
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700


def test_an_encrypted_log_reads_like_a_plain_one(log_root: Path, tmp_path: Path, key: KeySource) -> None:
    outcome = replace(_OK, stdout="out\n", stderr="err \u2028 \x00", result={"text/plain": "2"})
    encrypted, plain = _Session(log_root, key), _Session(tmp_path / "plain", None)
    for session in (encrypted, plain):
        session.session_id = new_session_id() if session is encrypted else encrypted.session_id
        for number in range(3):
            session.run(f"{number} \u2028", outcome)
        session.log.close()
    read = [
        [
            (record.request, record.outcome)
            for record in read_records(str(_log_path(root)))
            if isinstance(record, ExecutionRecord)
        ]
        for root in (log_root, tmp_path / "plain")
    ]
    assert read[0] == read[1]
    assert len(read[0]) == 3


def test_the_chain_is_verified_without_the_key(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TASK_LOG_KEY")
    checked = check_log(log)
    assert (len(checked.lines), checked.breaks, checked.pieces) == (3, [], [])
    with LogReader(str(log), decrypts=False) as reader:
        assert [line.link.n for line in reader.lines() if isinstance(line, LogLine)] == [1, 2, 3]


def test_a_plain_line_has_the_chain_fields_of_the_stored_one(log: Path, line_schema: Any) -> None:
    stored = [json.loads(line) for line in log.read_bytes().splitlines()]
    for line, one in zip(read_lines(str(log)), stored, strict=True):
        assert isinstance(line, LogLine)
        plain = json.loads(line.data)
        line_schema.validate(plain)
        assert [plain[name] for name in ("n", "prev", "hash")] == [
            one[name] for name in ("n", "prev", "hash")
        ]


def test_equal_lines_look_different_and_no_nonce_comes_twice(tmp_path: Path, key: KeySource) -> None:
    path = str(tmp_path / "plan" / "1.x.jsonl")
    log = LogFile(path, cipher=cipher_to_write(path, key))
    for _ in range(2_000):
        log.append(b'{"code":"same"')
    log.close()
    nonces = {json.loads(line)["data"][:16] for line in Path(path).read_bytes().splitlines()}
    assert len(nonces) == 2_000


def test_a_key_of_another_log_or_number_opens_no_line(tmp_path: Path, key: KeySource) -> None:
    paths = [str(tmp_path / "plan" / f"{number}.x.jsonl") for number in (1, 2)]
    ciphers = [cipher_to_write(path, key) for path in paths]
    line, _ = seal(ciphers[0].seal_body(b'{"code":"x"', 1), 1, "0" * 64)
    assert json.loads(ciphers[0].open_line(line[:-1], 1))["code"] == "x"
    with pytest.raises(Exception, match="not encrypted as line 2"):
        ciphers[0].open_line(line[:-1], 2)
    with pytest.raises(WrongKey):
        ciphers[1].open_line(line[:-1], 1)


def test_event_logs_share_the_plans_key_and_yet_no_line_fits_another_file(
    tmp_path: Path, key: KeySource
) -> None:
    paths = [str(tmp_path / "plan" / "events" / f"{number}.x.events.jsonl") for number in (1, 2)]
    (tmp_path / "plan" / "events").mkdir(parents=True)
    ciphers = [cipher_to_write(path, key) for path in paths]
    for path, cipher in zip(paths, ciphers, strict=True):
        log = LogFile(path, cipher=cipher)
        log.append(b'{"name":"x"')
        log.close()
        (line,) = read_lines(path)
        assert isinstance(line, LogLine)
        assert b'"name":"x"' in line.data
    assert os.listdir(tmp_path / "plan" / "keys") == ["plan.key"]
    shutil.copy(paths[0], paths[1])
    (line,) = read_lines(paths[1])
    assert isinstance(line, Damage)


def _resealed(bodies: list[bytes]) -> bytes:
    """A log with these bodies, its chain made anew as anyone can."""
    lines, prev = b"", "0" * 64
    for n, body in enumerate(bodies, 1):
        line, prev = seal(body, n, prev)
        lines += line
    return lines


def _bodies(log: Path) -> list[bytes]:
    return [line[: line.rfind(b',"n":')] for line in log.read_bytes().splitlines()]


@pytest.mark.parametrize("kind", ["altered", "swapped", "repeated", "plain", "foreign key"])
def test_a_log_made_anew_without_the_key_is_found_out(log: Path, kind: str) -> None:
    bodies = _bodies(log)
    if kind == "altered":
        at = bodies[1].rfind(b'"') - 10
        bodies[1] = bodies[1][:at] + (b"A" if bodies[1][at : at + 1] != b"A" else b"B") + bodies[1][at + 1 :]
    elif kind == "swapped":
        bodies[0], bodies[1] = bodies[1], bodies[0]
    elif kind == "repeated":
        bodies[1] = bodies[0]
    elif kind == "plain":
        bodies[1] = b'{"code":"plain"'
    else:
        bodies[1] = bodies[1].replace(b'"key_id":"', b'"key_id":"f', 1).replace(b'","data', b'","data', 1)
        start = bodies[1].index(b'"key_id":"') + 10
        bodies[1] = bodies[1][: start + 16] + bodies[1][start + 17 :]
    log.write_bytes(_resealed(bodies))
    found = list(read_records(str(log)))
    wrong = {0, 1} if kind == "swapped" else {1}
    for number, one in enumerate(found):
        assert isinstance(one, Damage) is (number in wrong), one
        if isinstance(one, Damage):
            assert one.kind == "unreadable"


def test_lines_decrypt_whatever_the_clock_said(log_root: Path, key: KeySource) -> None:
    session = _Session(log_root, key)
    times = ["2026-11-20T10:00:00.000Z", "2025-11-20T10:00:00.000Z", "2027-11-20T10:00:00.000Z"]
    for time in times:
        session.log.finish(session.begin("x", time), _OK)
    session.log.close()
    read = [one for one in read_records(str(_log_path(log_root))) if isinstance(one, ExecutionRecord)]
    assert [record.request.timestamp for record in read] == times


def test_no_line_exceeds_16_mib_however_much_it_should_hold(log_root: Path, key: KeySource) -> None:
    variables = {f"name{number}": {"type": "x" * 1000} for number in range(15_000)}
    outcome = replace(_OK, changes=replace(_OK.changes, variables=variables))
    session = _Session(log_root, key)
    record = session.run("x", outcome)
    session.log.close()
    assert record.head is not None
    assert [artifact.field for artifact in record.outcome.artifacts] == ["variables"]
    assert _log_path(log_root).stat().st_size <= MAX_LINE_BYTES
    (artifact,) = record.outcome.artifacts
    with get(str(log_root / "P"), artifact.sha256) as file:
        assert len(file.read()) == artifact.bytes > MAX_SEALED_BODY_BYTES
    almost = {f"name{number}": {"type": "x" * 1000} for number in range(11_000)}
    session = _Session(log_root, key)
    assert (
        session.run("x", replace(_OK, changes=replace(_OK.changes, variables=almost))).outcome.artifacts == ()
    )
    session.log.close()
    assert all(isinstance(one, ExecutionRecord) for one in read_records(str(_log_path(log_root))))


def test_a_task_logger_encrypts_too(log_root: Path, key: KeySource) -> None:
    with TaskLogger("P", 1, "name") as logger:
        logger.write({"code": _SECRET, "stdout": "x" * (2 << 20)})
    (record,) = read_records(str(_log_path(log_root)))
    assert isinstance(record, ExecutionRecord)
    assert record.request.code == _SECRET
    _nothing_is_readable(log_root)
    with get(str(log_root / "P"), record.outcome.artifacts[0].sha256) as file:
        assert file.read() == b"x" * (2 << 20)


# A log is encrypted as a whole, or not at all


def test_a_key_and_a_plain_log_are_refused_and_nothing_changes(
    log_root: Path, key: KeySource, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = _Session(log_root, None)
    session.run("plain")
    session.log.close()
    before = _tree(log_root)
    for strict in (False, True):
        with pytest.raises(ConfigurationError, match="are plain") as caught:
            _Session(log_root, key, strict=strict)
        assert caught.value.setting == "TASK_LOG_KEY"
    with pytest.raises(ConfigurationError, match="are plain"):
        TaskLogger("P", 1, "name")
    assert _tree(log_root) == before


def test_no_key_and_an_encrypted_log_are_refused_and_nothing_changes(
    log: Path, log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = _tree(log_root)
    for strict in (False, True):
        with pytest.raises(ConfigurationError, match="is encrypted"):
            _Session(log_root, None, strict=strict)
    monkeypatch.delenv("TASK_LOG_KEY")
    with pytest.raises(ConfigurationError, match="is encrypted"):
        TaskLogger("P", 1, "name")
    assert _tree(log_root) == before


def test_a_log_that_was_begun_with_a_key_takes_no_plain_first_line(log_root: Path, key: KeySource) -> None:
    _Session(log_root, key).log.close()
    assert _log_path(log_root).read_bytes() == b""
    with pytest.raises(ConfigurationError, match="is encrypted"):
        _Session(log_root, None)


def test_of_a_plain_and_an_encrypted_writer_the_first_line_decides(tmp_path: Path, key: KeySource) -> None:
    path = str(tmp_path / "plan" / "1.x.jsonl")
    (tmp_path / "plan").mkdir()
    plain = LogFile(path)  # opened before there was a header
    encrypted = LogFile(path, cipher=cipher_to_write(path, key))
    encrypted.append(b'{"code":"encrypted"')
    with pytest.raises(ConfigurationError):
        plain.append(b'{"code":"plain"')
    encrypted.append(b'{"code":"encrypted"')
    assert len(check_log(path).lines) == 2
    assert "plain" not in Path(path).read_text()
    plain.close()
    encrypted.close()


def test_plain_logs_and_encrypted_ones_live_in_one_plan(
    log_root: Path, key: KeySource, tmp_path: Path
) -> None:
    big = replace(_OK, stdout="x" * (2 << 20))
    session = _Session(log_root, None)
    first = session.run("plain", big).outcome.artifacts[0]
    session.log.close()
    task = replace(_TASK, task_id="T-2")
    log = SessionLog(root=str(log_root), task=task, session_id=new_session_id(), key=key)
    request = _request(task)
    log.begin(request)
    second = log.finish(request, replace(_OK, stdout="y" * (2 << 20))).outcome.artifacts[0]
    log.close()
    for artifact, content in ((first, b"x"), (second, b"y")):
        with get(str(log_root / "P"), artifact.sha256) as file:
            assert file.read() == content * (2 << 20)


def _request(task: TaskIds) -> ExecutionRequest:
    return ExecutionRequest(
        code="x", session_id=new_session_id(), seq=1, task=task, timestamp="2026-11-20T10:00:00.000Z"
    )


# Keys that can't be used


@pytest.mark.parametrize("kind", ["wrong", "missing", "malformed", "readable by others"])
def test_four_ways_to_have_no_key_are_four_errors_and_no_file_changes(
    log: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    log_root = log.parent.parent
    other = _key_file(tmp_path, "other")
    error: type[KeyRefused] = WrongKey
    if kind == "missing":
        other.unlink()
        error = KeyMissing
    elif kind == "malformed":
        other.write_bytes(b"a short text")
        error = KeyMalformed
    elif kind == "readable by others":
        other.chmod(0o644)
        error = KeyPermissions
    before = _tree(log_root)
    wrong = KeySource(f"file:{other}")
    for strict in (False, True):
        with pytest.raises(error) as caught:
            _Session(log_root, wrong, strict=strict)
        assert type(caught.value) is error
    with pytest.raises(error):
        list(read_lines(str(log), wrong))
    monkeypatch.setenv("TASK_LOG_KEY", f"file:{other}")
    for command in (["show"], ["tail"], ["ls"], ["show", "--tree"], ["show", "2"], ["decrypt"]):
        where = ["--dir", str(log_root)] if command == ["ls"] else [str(log)]
        assert main([command[0], *where, *command[1:]]) == 1
        said = capsys.readouterr()
        assert _SECRET not in said.out
        assert said.err.startswith("task-log: TASK_LOG_KEY: ")
        assert said.err.count("\n") == 1
    assert _tree(log_root) == before


def test_a_wrong_key_is_told_before_anything_is_read(log: Path, tmp_path: Path) -> None:
    log.write_bytes(b"garbage\n" * 3)
    with pytest.raises(WrongKey, match="is another key") as caught:
        LogReader(str(log), key=KeySource(f"file:{_key_file(tmp_path, 'other')}"))
    log.unlink()
    assert caught.value.path.endswith("1.name.key")


def test_a_missing_header_is_no_reason_to_make_another(log: Path, log_root: Path, key: KeySource) -> None:
    for name in ("1.name.key", "plan.key"):
        header = log.parent / "keys" / name
        aside = header.rename(log_root / name)
        before = _tree(log_root)
        with pytest.raises(KeyMissing, match="is gone"):
            _Session(log_root, key)
        assert _tree(log_root) == before
        aside.rename(header)
    _Session(log_root, key).log.close()


@pytest.mark.parametrize("content", [b"", b"{}", b"null", b"{", b'{"schema":2}', b"\xff" * 300])
def test_a_header_that_makes_no_sense_is_named(log: Path, content: bytes) -> None:
    (log.parent / "keys" / "1.name.key").write_bytes(content)
    with pytest.raises(KeyMalformed, match="makes no sense"):
        list(read_lines(str(log)))


def test_an_altered_header_is_named(log: Path) -> None:
    path = log.parent / "keys" / "1.name.key"
    header = json.loads(path.read_text())
    for name in ("file_id", "key_id"):
        forged = header | {name: "0" * len(header[name])}
        path.write_text(json.dumps(forged))
        with pytest.raises(KeyMalformed, match="was altered"):
            list(read_lines(str(log)))


def test_a_header_cannot_ask_for_more_memory_than_there_is(log_root: Path) -> None:
    session = _Session(log_root, KeySource("a passphrase"))
    session.run()
    session.log.close()
    path = log_root / "P" / "keys" / "1.name.key"
    header = json.loads(path.read_text())
    header["kdf"]["n"] = 1 << 30
    path.write_text(json.dumps(header))
    with pytest.raises(KeyMalformed):
        list(read_lines(str(_log_path(log_root)), KeySource("a passphrase")))


def test_a_passphrase_is_derived_once_for_all_of_a_plan(log_root: Path) -> None:
    key = KeySource("a passphrase")
    session = _Session(log_root, key)
    session.run(outcome=replace(_OK, stdout="x" * (2 << 20)))
    session.log.close()
    assert len(key._derived) == 1
    (record,) = read_records(str(_log_path(log_root)), KeySource("a passphrase"))
    assert isinstance(record, ExecutionRecord)
    with pytest.raises(WrongKey):
        list(read_records(str(_log_path(log_root)), KeySource("another passphrase")))


def test_a_machine_without_the_package_says_what_to_install(log: Path) -> None:
    code = (
        "import sys; sys.modules['cryptography'] = None\n"
        "from task_logger.cli import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "show", str(log)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "pip install 'json-repl[crypto]'" in done.stderr


def test_without_a_key_nothing_of_it_is_imported(log_root: Path) -> None:
    code = (
        "import sys; from task_logger.record import TaskIds; from task_logger.session_log import SessionLog\n"
        "task = TaskIds(plan_id='P', task_id='T-9', task_name='x')\n"
        "SessionLog(root=sys.argv[1], task=task, session_id='a').close()\n"
        "print([m for m in sys.modules if 'crypto' in m or m in ('task_logger.keys', 'hmac')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(log_root)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


# Whatever dies


def test_a_line_cut_at_any_byte_is_torn_and_no_wrong_key(log: Path, key: KeySource) -> None:
    whole = log.read_bytes()
    start = whole.rfind(b"\n", 0, -1) + 1
    for end in [*range(start + 1, len(whole) - 80, 7), *range(len(whole) - 80, len(whole) - 1)]:
        log.write_bytes(whole[:end])
        found = list(read_records(str(log)))
        assert [type(one) for one in found] == [ExecutionRecord, ExecutionRecord, Damage]
        assert isinstance(found[-1], Damage)
        assert found[-1].kind == "torn_tail"
    log.write_bytes(whole[: start + 100])
    again = LogFile(str(log), cipher=cipher_to_write(str(log), key))
    again.append(b'{"code":"after"')
    again.close()
    checked = check_log(log)
    assert (len(checked.lines), checked.breaks, len(checked.pieces)) == (3, [], 1)


def test_a_session_that_died_leaves_nothing_readable_and_gets_its_line(
    log_root: Path, key: KeySource
) -> None:
    session = _Session(log_root, key)
    session.run()
    session.begin(_SECRET)
    _nothing_is_readable(log_root)
    ((request, alive),) = pending_of(str(_log_path(log_root)))
    assert (request.code, request.seq, alive) == (_SECRET, 2, True)
    session.die()
    following = _Session(log_root, key)
    following.log.close()
    statuses = [
        (record.request.seq, record.outcome.status, record.request.code)
        for record in read_records(str(_log_path(log_root)))
        if isinstance(record, ExecutionRecord)
    ]
    assert statuses == [(1, "ok", _SECRET), (2, "unknown", _SECRET)]
    assert os.listdir(log_root / "P" / "pending") == []
    _nothing_is_readable(log_root)


def test_a_dead_sessions_line_that_is_there_is_not_written_twice(log_root: Path, key: KeySource) -> None:
    session = _Session(log_root, key)
    session.run()
    session.die()
    for _ in range(2):
        _Session(log_root, key).log.close()
    assert len(check_log(_log_path(log_root)).lines) == 1


def test_a_line_that_could_not_be_written_is_kept_encrypted(
    log_root: Path, key: KeySource, tmp_path: Path
) -> None:
    session = _Session(log_root, key)
    session.run()
    moved = _log_path(log_root).rename(tmp_path / "moved")
    _log_path(log_root).mkdir()
    record = session.run("print(2)", replace(_OK, stdout=_SECRET))
    assert record.head is None
    _nothing_is_readable(log_root)
    session.die()
    _log_path(log_root).rmdir()
    moved.rename(_log_path(log_root))
    _Session(log_root, key).log.close()
    outputs = [
        record.outcome.stdout
        for record in read_records(str(_log_path(log_root)))
        if isinstance(record, ExecutionRecord)
    ]
    assert outputs == ["", _SECRET]


def test_where_the_key_cannot_be_kept_nothing_goes_to_the_disk(log_root: Path, key: KeySource) -> None:
    (log_root / "P").mkdir(parents=True)
    log_root.chmod(0o700)
    (log_root / "P" / "keys").write_text("in the way")
    with pytest.raises(Exception, match="keys"):
        _Session(log_root, key)
    assert sorted(os.listdir(log_root / "P")) == ["keys"]


def test_on_a_full_disk_lines_wait_in_memory_until_there_is_a_key(small_disk: Path, key: KeySource) -> None:
    filler = small_disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        for _ in range(1024):  # four times as much as there is
            file.write(bytes(4096))
    session = _Session(small_disk, key)
    record = session.run(f"{_SECRET} 1", replace(_OK, stdout="x" * (2 << 20)))
    assert record.head is None
    assert any("in memory only" in notice for notice in record.notices)
    _nothing_is_readable(small_disk)
    assert not (small_disk / "P" / "1.name.jsonl").exists()
    filler.unlink()
    second = session.run(f"{_SECRET} 2")
    assert second.head is not None
    assert second.head.n == 2
    _nothing_is_readable(small_disk)
    codes = [
        one.request.code
        for one in read_records(str(_log_path(small_disk)))
        if isinstance(one, ExecutionRecord)
    ]
    assert codes == [f"{_SECRET} 1", f"{_SECRET} 2"]
    session.log.close()


def test_settling_leaves_the_pending_files_of_other_logs_alone(log_root: Path, key: KeySource) -> None:
    session = _Session(log_root, key)
    session.begin()
    session.die()
    task = replace(_TASK, task_id="T-2")
    log = SessionLog(root=str(log_root), task=task, session_id=new_session_id(), key=key)
    assert log.notices == []
    log.close()
    assert len(os.listdir(log_root / "P" / "pending")) == 1


_START_AT_ONCE = """
import os, sys
from task_logger.encryption import cipher_to_write
from task_logger.keys import KeySource
from task_logger.log_file import LogFile

sys.stdin.readline()
path = sys.argv[1]
log = LogFile(path, lock_wait_s=60, cipher=cipher_to_write(path, KeySource("file:" + sys.argv[2])))
for number in range(20):
    log.append(b'{"code":"%d"' % os.getpid())
"""


def test_writers_that_start_at_once_agree_on_one_key(tmp_path: Path, key_file: Path) -> None:
    for attempt in range(2):
        path = tmp_path / f"plan{attempt}" / "1.x.jsonl"
        path.parent.mkdir()
        writers = [
            subprocess.Popen(
                [sys.executable, "-c", _START_AT_ONCE, str(path), str(key_file)], stdin=-1, text=True
            )
            for _ in range(6)
        ]
        for writer in writers:
            assert writer.stdin is not None
            writer.stdin.write("\n")
            writer.stdin.flush()
        assert [writer.communicate(timeout=60) and writer.returncode for writer in writers] == [0] * 6
        lines = list(read_lines(str(path), KeySource(f"file:{key_file}")))
        assert len(lines) == 120
        assert all(isinstance(line, LogLine) for line in lines)
        assert sorted(os.listdir(path.parent / "keys")) == ["1.x.key", "plan.key"]


# Elsewhere, and with other programs


def test_a_plan_copied_to_another_place_is_read_with_its_key(
    log_root: Path, key: KeySource, tmp_path: Path
) -> None:
    session = _Session(log_root, key)
    artifact = session.run(outcome=replace(_OK, stdout="x" * (2 << 20))).outcome.artifacts[0]
    session.log.close()
    elsewhere = tmp_path / "another machine" / "renamed plan"
    shutil.copytree(log_root / "P", elsewhere)
    shutil.rmtree(log_root / "P")
    (record,) = read_records(str(elsewhere / "1.name.jsonl"))
    assert isinstance(record, ExecutionRecord)
    assert record.request.code == _SECRET
    with get(str(elsewhere), artifact.sha256) as file:
        assert file.read() == b"x" * (2 << 20)
    cipher_to_read(str(elsewhere / "1.name.jsonl"))


def _task_log(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "task_logger", *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_every_reading_command_takes_the_key_from_the_environment(log: Path, log_root: Path) -> None:
    for arguments in (
        ("show", str(log)),
        ("show", str(log), "2"),
        ("show", str(log), "--tree"),
        ("show", str(log), "--json"),
        ("tail", str(log)),
        ("tail", str(log), "-n", "1", "--json"),
        ("decrypt", str(log)),
    ):
        done = _task_log(*arguments)
        assert (done.returncode, done.stderr) == (0, "")
        assert _SECRET[:20] in done.stdout
    (found,) = [
        json.loads(line) for line in _task_log("ls", "--dir", str(log_root), "--json").stdout.splitlines()
    ]
    assert (found["lines"], found["ok"], found["damaged"]) == (3, 3, 0)


def test_decrypt_gives_plain_lines_to_jq(log: Path) -> None:
    if shutil.which("jq") is None:
        pytest.skip("jq isn't installed")
    plain = subprocess.run(
        [sys.executable, "-m", "task_logger", "decrypt", str(log)], capture_output=True, check=True
    )
    codes = subprocess.run(
        ["jq", "-r", "[.n, .code] | @tsv"], input=plain.stdout, capture_output=True, check=True
    ).stdout.decode()
    assert codes.splitlines() == [f"{number + 1}\t{_SECRET} {number}" for number in range(3)]


def test_decrypt_names_what_it_leaves_out(log: Path) -> None:
    bodies = _bodies(log)
    log.write_bytes(_resealed([bodies[0], bodies[0], bodies[2]]))
    done = _task_log("decrypt", str(log))
    assert done.returncode == 1
    assert [json.loads(line)["n"] for line in done.stdout.splitlines()] == [1, 3]
    assert "forged, altered or moved" in done.stderr


def test_logs_of_other_keys_are_named_beside_those_that_can_be_listed(log: Path, log_root: Path) -> None:
    task = replace(_TASK, plan_id="Q")
    other = SessionLog(root=str(log_root), task=task, session_id=new_session_id())
    request = _request(task)
    other.begin(request)
    other.finish(request, _OK)
    other.close()
    environment = {name: value for name, value in os.environ.items() if name != "TASK_LOG_KEY"}
    done = subprocess.run(
        [sys.executable, "-m", "task_logger", "ls", "--json"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert [json.loads(line)["plan"] for line in done.stdout.splitlines()] == ["Q"]
    assert str(log) in done.stderr


def test_the_key_is_in_no_message_and_no_representation(tmp_path: Path) -> None:
    key = KeySource(_SECRET)
    assert _SECRET not in repr(key)
    assert _SECRET not in str(LogUnavailable("x", repr(key)))


@pytest.fixture(autouse=True)
def _no_key_is_left_in_files(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    """No key of a file is found in anything that was written."""
    yield
    key_path = tmp_path / "key"
    if key_path.exists():
        secret = key_path.read_bytes()
        for path in tmp_path.rglob("*"):
            if path.is_file() and path.parent != tmp_path:
                content = path.read_bytes()
                assert secret not in content
                assert secret.hex().encode() not in content
