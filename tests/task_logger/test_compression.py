"""A compressed log is the same log: every reader opens it, its chain goes on, and nobody can lose a line."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import zstandard

from task_logger.compression import compress_log, restore_log
from task_logger.errors import (
    ConfigurationError,
    LogInUse,
    LogNotFound,
    LogUnavailable,
    LogUnreadable,
)
from task_logger.log_file import LogFile
from task_logger.reader import Damage, LogLine, find_logs, last_lines, pending_of, read_lines
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.summary import summarize
from task_logger.verification import verify_log
from task_logger.writer import TaskLogger, new_session_id
from tests.conftest import WaitUntil


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FLOW_", "TASK_LOG_"))]:
        monkeypatch.delenv(name)


def logger(root: Path) -> TaskLogger:
    return TaskLogger("P-1", 7, "login", log_dir=root)


def new_log(root: Path, count: int = 20) -> Path:
    writer = logger(root)
    for number in range(count):
        writer.write({"code": f"x = {number}", "stdout": "é" * number})
    writer.close()
    return Path(writer.path)


def compressed(log: Path) -> Path:
    return log.with_name(f"{log.name}.zst")


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.is_file()}


def test_a_compressed_log_takes_the_place_of_the_plain_one_and_holds_its_bytes(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    data = log.read_bytes()
    done = compress_log(str(log))
    assert names(log.parent) == {compressed(log).name}
    assert (done.path, done.plain_bytes) == (str(compressed(log)), len(data))
    assert done.compressed_bytes == compressed(log).stat().st_size < len(data)
    assert compressed(log).stat().st_mode & 0o777 == 0o600
    assert zstandard.ZstdDecompressor().decompress(compressed(log).read_bytes()) == data


@pytest.mark.parametrize("suffix", ["", ".zst"])
def test_every_reader_opens_it_by_either_name(tmp_path: Path, suffix: str) -> None:
    log = new_log(tmp_path)
    before = list(read_lines(str(log)))
    verdict = verify_log(str(log))
    compress_log(str(log))
    path = f"{log}{suffix}"
    after = list(read_lines(path))
    assert [(line.at, line.link) for line in after if isinstance(line, LogLine)] == [
        (line.at, line.link) for line in before if isinstance(line, LogLine)
    ]
    assert [line.link.n for line in last_lines(path, 3) if isinstance(line, LogLine)] == [18, 19, 20]
    assert list(last_lines(path, 0)) == []
    assert len(list(last_lines(path, 10**20))) == 20
    assert (verify_log(path).head, verify_log(path).bytes) == (verdict.head, verdict.bytes)
    assert pending_of(path) == []
    assert find_logs(str(tmp_path)) == [str(compressed(log))]


def test_a_task_that_goes_on_brings_its_log_back_and_continues_the_chain(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    data = log.read_bytes()
    compress_log(str(log))
    with logger(tmp_path) as writer:
        assert writer.write({"code": "more"}).n == 21
    assert names(log.parent) == {log.name}
    assert log.read_bytes().startswith(data)
    assert verify_log(str(log)).is_yes()
    assert log.stat().st_mode & 0o777 == 0o600


def test_a_writer_that_was_idle_while_its_log_was_compressed_goes_on(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    with logger(tmp_path) as writer:
        compress_log(str(log))
        assert writer.write({"code": "more"}).n == 21
    assert verify_log(str(log)).is_yes()


def session_log(root: Path) -> tuple[SessionLog, str]:
    session_id = new_session_id()
    task = TaskIds(plan_id="P-1", task_id="T-7", task_name="login")
    return SessionLog(root=str(root), task=task, session_id=session_id), session_id


def execution(session_id: str, seq: int) -> tuple[ExecutionRequest, ExecutionOutcome]:
    request = ExecutionRequest(
        code="1",
        session_id=session_id,
        seq=seq,
        task=TaskIds(plan_id="P-1", task_id="T-7", task_name="login"),
        timestamp="2026-01-01T00:00:00.000Z",
    )
    return request, ExecutionOutcome(status="ok", route="local", isolation="none", elapsed_ms=0)


def test_the_log_of_a_session_that_lives_or_left_something_is_not_compressed(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    session, session_id = session_log(tmp_path)
    with pytest.raises(LogInUse, match="a session has it open"):
        compress_log(str(log))
    request, outcome = execution(session_id, 1)
    session.begin(request)
    session.finish(request, outcome)
    session.close()
    (log.parent / "pending" / new_session_id()).write_bytes(b"deadbeef garbage")
    with pytest.raises(LogInUse, match="left an execution"):
        compress_log(str(log))
    assert names(log.parent) == {log.name}


def test_a_log_that_grows_while_it_is_compressed_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(tmp_path)
    from task_logger import compression

    read_back = compression._digest_of_compressed

    def meanwhile(path: str) -> bytes:
        with logger(tmp_path) as writer:
            writer.write({"code": "meanwhile"})
        return read_back(path)

    monkeypatch.setattr(compression, "_digest_of_compressed", meanwhile)
    with pytest.raises(LogInUse, match="written to"):
        compress_log(str(log))
    assert names(log.parent) == {log.name}
    assert verify_log(str(log)).lines == 21


def test_where_both_are_there_the_plain_one_counts(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    compress_log(str(log))
    stale = compressed(log).read_bytes()
    with logger(tmp_path) as writer:
        writer.write({"code": "more"})
    compressed(log).write_bytes(stale)  # what a death between the two steps leaves
    assert len(list(read_lines(str(log)))) == 21
    assert find_logs(str(tmp_path)) == [str(log)]
    with logger(tmp_path) as writer:
        assert writer.write({"code": "still more"}).n == 22
    compress_log(str(log))
    assert len(list(read_lines(str(log)))) == 22
    assert names(log.parent) == {compressed(log).name}


def test_writers_that_bring_a_log_back_at_once_make_one_chain(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    for round_number in range(5):
        compress_log(str(log))

        def write(number: int, round_number: int = round_number) -> int:
            with logger(tmp_path) as writer:
                return writer.write({"code": f"{round_number} {number}"}).n

        with ThreadPoolExecutor(8) as pool:
            numbers = sorted(pool.map(write, range(8)))
        assert numbers == list(range(21 + 8 * round_number, 29 + 8 * round_number))
        assert names(log.parent) == {log.name}
    assert verify_log(str(log)).is_yes()


def test_no_line_is_lost_between_writers_and_compressors_that_race(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    log = new_log(tmp_path, 1)
    write = (
        "import sys\nfrom task_logger import TaskLogger\n"
        "for i in range(40):\n"
        "    with TaskLogger('P-1', 7, 'login', log_dir=sys.argv[1]) as log:\n"
        "        log.write({'code': sys.argv[2] + ' ' + str(i)})\n"
    )
    compress = (
        "import select, sys\nfrom task_logger.compression import compress_log\n"
        "from task_logger.errors import TaskLogError\ndone = 0\n"
        "while not select.select([sys.stdin], [], [], 0)[0]:\n"
        "    try: compress_log(sys.argv[1]); done += 1\n"
        "    except TaskLogError: pass\n"
        "print(done)\n"
    )
    compressors = [
        subprocess.Popen(
            [sys.executable, "-c", compress, str(log)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    writers = [
        subprocess.Popen([sys.executable, "-c", write, str(tmp_path), name], stderr=subprocess.PIPE)
        for name in "abcd"
    ]
    said = [writer.communicate(timeout=60)[1].decode() for writer in writers]
    wait_until(compressed(log).exists)
    done = [int(compressor.communicate(timeout=60)[0]) for compressor in compressors]
    assert (said, [writer.returncode for writer in writers]) == ([""] * 4, [0] * 4)
    assert sum(done) > 0
    lines = list(read_lines(str(log)))
    assert all(isinstance(line, LogLine) for line in lines)
    assert len(lines) == 161
    codes = {line.record().request.code for line in lines if isinstance(line, LogLine)}
    assert codes == {"x = 0"} | {f"{name} {number}" for name in "abcd" for number in range(40)}


def test_a_compressor_that_is_killed_anywhere_leaves_the_log(tmp_path: Path) -> None:
    log = new_log(tmp_path, 300)
    data = log.read_bytes()
    code = (
        "import sys, zstandard\nfrom task_logger.compression import compress_log\n"
        "print(flush=True)\ncompress_log(sys.argv[1])"
    )
    for delay_us in range(0, 12_000, 600):
        process = subprocess.Popen([sys.executable, "-c", code, str(log)], stdout=subprocess.PIPE)
        assert process.stdout is not None
        process.stdout.readline()
        signal.sigtimedwait([], delay_us / 1e6)
        process.kill()
        process.communicate()
        assert (
            b"".join(line.data + b"\n" for line in read_lines(str(log)) if isinstance(line, LogLine)) == data
        )
        if not log.exists():
            restore_log(str(log), fsync=False)
        assert log.read_bytes() == data


def test_a_log_that_is_brought_back_is_still_read_by_its_compressed_name(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    compress_log(str(log))
    listed = find_logs(str(tmp_path))
    restore_log(str(log), fsync=False)
    (path,) = listed
    assert summarize(path).lines == len(list(read_lines(path))) == verify_log(path).lines == 20
    assert summarize(path).bytes == log.stat().st_size
    compress_log(str(log))
    assert summarize(str(log)).bytes == compressed(log).stat().st_size
    compressed(log).unlink()
    for name in (str(log), path):
        with pytest.raises(LogNotFound):
            summarize(name)


@pytest.mark.parametrize("damage", ["cut", "flipped", "no start", "cut in its header", "emptied"])
def test_a_damaged_compressed_log_is_named_and_no_new_log_begins_in_its_place(
    tmp_path: Path, damage: str
) -> None:
    log = new_log(tmp_path, 2000)
    compress_log(str(log))
    data = bytearray(compressed(log).read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    elif damage == "cut in its header":
        del data[5:]
    elif damage == "emptied":
        data.clear()
    elif damage == "no start":
        data[0] ^= 0x10
    else:
        data[len(data) // 2] ^= 0x10
    compressed(log).write_bytes(data)
    with pytest.raises(LogUnreadable, match="compressed, and"):
        list(read_lines(str(log)))
    with pytest.raises(LogUnreadable, match="compressed, and"):
        verify_log(str(log))
    with pytest.raises(LogUnreadable, match="compressed, and"):
        list(last_lines(str(log), 3))
    with pytest.raises(LogUnavailable, match="compressed, and"):
        logger(tmp_path)
    assert names(log.parent) == {compressed(log).name}


def test_damage_in_the_log_itself_is_found_in_the_compressed_one(tmp_path: Path) -> None:
    log = new_log(tmp_path)
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:5], b"garbage\n", *lines[6:]]) + b'{"torn')
    plain = list(read_lines(str(log)))
    verdict = verify_log(str(log))
    compress_log(str(log))
    found = [line for line in read_lines(str(log)) if isinstance(line, Damage)]
    assert [(one.kind, one.at, one.bytes) for one in found] == [
        (one.kind, one.at, one.bytes) for one in plain if isinstance(one, Damage)
    ]
    again = verify_log(str(log))
    assert [(one.kind, one.line, one.at) for one in again.findings] == [
        (one.kind, one.line, one.at) for one in verdict.findings
    ]


def test_a_key_for_a_plain_log_is_refused_though_the_log_is_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = new_log(tmp_path)
    compress_log(str(log))
    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery staple")
    with pytest.raises(ConfigurationError, match="plain"):
        logger(tmp_path)
    assert not (log.parent / "keys").exists()
    assert len(list(read_lines(str(log)))) == 20


def test_an_encrypted_log_is_compressed_and_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery staple")
    log = new_log(tmp_path)
    compress_log(str(log))
    with pytest.raises(LogUnreadable, match="compressed already"):
        compress_log(str(log))
    codes = [line.record().request.code for line in read_lines(str(log)) if isinstance(line, LogLine)]
    assert codes == [f"x = {number}" for number in range(20)]
    with logger(tmp_path) as writer:
        assert writer.write({"code": "more"}).n == 21


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("7.login.jsonl.zst", "compressed already"),
        ("7.login.txt", "no log"),
        ("events", "no log"),
        ("7.login.events.jsonl", "events"),
    ],
)
def test_only_a_plain_log_can_be_compressed(tmp_path: Path, name: str, why: str) -> None:
    (tmp_path / name).write_bytes(b"")
    with pytest.raises(LogUnreadable, match=f"can't be compressed: .*{why}"):
        compress_log(str(tmp_path / name))
    assert os.listdir(tmp_path) == [name]
    with pytest.raises(LogNotFound):
        compress_log(str(tmp_path / "8.x.jsonl"))


def test_a_disk_that_is_full_is_named_and_leaves_the_log_as_it_was(tmp_path: Path) -> None:
    log = tmp_path / "P-1" / "7.random.jsonl"
    log.parent.mkdir()
    file = LogFile(str(log))
    file.append(b'{"filler":"' + os.urandom(400_000).hex().encode() + b'"')
    file.close()
    code = (
        "import resource, sys\nfrom task_logger.cli import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, 150_000))\nsys.exit(main(sys.argv[1:]))"
    )
    export = ("export", "P-1", "--dir", str(tmp_path), "-o", str(tmp_path / "a.tar.zst"))
    for arguments, said in (
        (("compress", str(log)), f"the task log '{log}' has no room"),
        (export, f"the archive '{tmp_path}/a.tar.zst' can't be written: File too large"),
    ):
        ended = subprocess.run(
            [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
        )
        assert (ended.returncode, ended.stderr.count("\n")) == (1, 1)
        assert said in ended.stderr
    assert names(tmp_path) == set()
    assert names(log.parent) == {log.name}


def test_memory_stays_flat_however_well_a_log_is_compressed(tmp_path: Path) -> None:
    log = tmp_path / "P-1" / "7.big.jsonl"
    log.parent.mkdir()
    file = LogFile(str(log))
    for _ in range(20):
        file.append(b'{"filler":"' + b"a" * (8 << 20) + b'"')
    file.close()
    compress_log(str(log))
    code = (
        "import resource, sys\nfrom task_logger.verification import verify_log\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert verify_log(sys.argv[1]).lines == 20\n"
        "print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    grown_mb = subprocess.run(
        [sys.executable, "-c", code, str(log)], capture_output=True, text=True, check=True
    ).stdout
    assert int(grown_mb) < 100
