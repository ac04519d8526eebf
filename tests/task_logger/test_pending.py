"""What a session leaves in its pending file is enough for others to give each execution its one line."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from task_logger.abandoned import look_at
from task_logger.codec import encode, encode_request
from task_logger.compression import compress_log
from task_logger.errors import LogDiskFull, LogPathRefused
from task_logger.garbage import find_garbage
from task_logger.log_file import LogFile
from task_logger.pending import PendingFile
from task_logger.pending_check import check_pending
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.settling import has_line, pending_requests, settle
from task_logger.writer import new_session_id
from tests.task_logger.log_check import check_log

_TASK = TaskIds(plan_id="P", task_id="T-1", task_name="name")
_LOG_NAME = "1.name.jsonl"
_OK = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)


def _request(session_id: str, seq: int, code: str = "x = 1") -> ExecutionRequest:
    return ExecutionRequest(
        code=code, session_id=session_id, seq=seq, task=_TASK, timestamp="2026-11-20T10:00:00.000Z"
    )


def _pending(folder: Path, session_id: str) -> PendingFile:
    (folder / "pending").mkdir(exist_ok=True)
    return PendingFile(
        str(folder / "pending"), session_id, _LOG_NAME, route="worker", isolation="process", fsync=False
    )


def _begin(pending: PendingFile, log: LogFile, request: ExecutionRequest) -> None:
    pending.begin(encode_request(request), request.seq, log_inode=log.inode, log_bytes=log.known_bytes)


def _keep(pending: PendingFile, log: LogFile, request: ExecutionRequest) -> None:
    body = encode(request, _OK).body
    pending.keep(body, request.seq, log_inode=log.inode, log_bytes=log.known_bytes)


def _settled(folder: Path) -> list[tuple[int, str]]:
    """Settle as the next writer does; returns `seq` and status of every line."""
    log = LogFile(str(folder / _LOG_NAME))
    settle(str(folder), log)
    log.close()
    checked = check_log(folder / _LOG_NAME)
    assert checked.breaks == []
    return [(line["seq"], line["status"]) for line in checked.lines]


def _names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in (folder / "pending").iterdir())


def test_an_execution_whose_session_died_gets_a_line_that_says_unknown(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    _begin(pending, log, _request(pending.name, 1))
    assert _settled(tmp_path) == []  # its owner lives
    pending.close(remove=False)
    assert _settled(tmp_path) == [(1, "unknown")]
    assert _settled(tmp_path) == [(1, "unknown")]
    assert _names(tmp_path) == []


def test_an_execution_that_has_its_line_gets_no_second_one(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    request = _request(pending.name, 1)
    _begin(pending, log, request)
    log.append(encode(request, _OK).body)
    pending.close(remove=False)
    assert _settled(tmp_path) == [(1, "ok")]
    assert _names(tmp_path) == []


def test_kept_lines_pile_up_and_are_appended_in_order(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    for seq in range(1, 6):
        request = _request(pending.name, seq, code="y" * (1000 // seq))
        _begin(pending, log, request)
        _keep(pending, log, request)
    _begin(pending, log, _request(pending.name, 6))
    pending.close(remove=False)
    assert _settled(tmp_path) == [(1, "ok"), (2, "ok"), (3, "ok"), (4, "ok"), (5, "ok"), (6, "unknown")]


def test_the_rest_of_an_older_longer_entry_is_no_entry(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    for length in (5000, 100, 2000, 0):
        _begin(pending, log, _request(pending.name, 1, code="z" * length))
        assert [entry.request.code for entry in pending.entries() if entry.request] == ["z" * length]
    _keep(pending, log, _request(pending.name, 1))
    assert [entry.body is None for entry in pending.entries()] == [True, False]
    pending.reset()
    assert pending.entries() == []


@settings(max_examples=60)
@given(st.lists(st.tuples(st.booleans(), st.text(max_size=300)), min_size=1, max_size=8), st.data())
def test_a_file_cut_anywhere_holds_whole_entries_or_none(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[bool, str]], data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("plan")
    log = LogFile(str(folder / _LOG_NAME))
    pending = _pending(folder, new_session_id())
    for seq, (keep, code) in enumerate(steps, start=1):
        _begin(pending, log, _request(pending.name, seq, code))
        if keep:
            _keep(pending, log, _request(pending.name, seq, code))
    whole = pending.entries()
    size_bytes = os.path.getsize(pending.path)  # a str is what it has
    os.truncate(pending.path, data.draw(st.integers(0, size_bytes)))
    cut = pending.entries()
    assert cut == whole[: len(cut)]
    pending.close(remove=False)
    log.close()


def test_a_request_that_could_only_be_put_down_in_part_spoils_nothing_after_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    whole_write = os.pwrite
    calls = []

    def disk_gets_full(number: int, data: bytes, at: int) -> int:
        calls.append(at)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        return whole_write(number, data[: len(data) // 2], at)

    _begin(pending, log, _request(pending.name, 1))
    log.append(encode(_request(pending.name, 1), _OK).body)
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", disk_gets_full)
        with pytest.raises(LogDiskFull):
            _begin(pending, log, _request(pending.name, 2))
    _keep(pending, log, _request(pending.name, 2))
    _begin(pending, log, _request(pending.name, 3))
    pending.close(remove=False)
    assert _settled(tmp_path) == [(1, "ok"), (2, "ok"), (3, "unknown")]


def test_code_that_looks_like_entries_is_code(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    pending = _pending(tmp_path, new_session_id())
    code = '\n00000000 {"log":"x","request":{}}\n,"body":{},"request":\ud800\u2028'
    _begin(pending, log, _request(pending.name, 1, code))
    assert pending.entries()[0].request == _request(pending.name, 1, code)
    pending.close(remove=False)
    assert _settled(tmp_path) == [(1, "unknown")]


def test_a_line_is_only_looked_for_where_it_can_be_and_only_by_its_own_fields(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    session_id = new_session_id()
    for seq in range(1, 4):
        log.append(encode(_request(session_id, seq, f'{{"session_id":"{session_id}","seq":9}}'), _OK).body)
    path, size = log.path, log.known_bytes

    def found(seq: int, after_bytes: int = 0, inode: int = log.inode, of: str = session_id) -> bool:
        return has_line(path, of, seq, after_bytes=after_bytes, inode=inode)

    assert [seq for seq in range(10) if found(seq)] == [1, 2, 3]
    assert not found(1, of=new_session_id())
    assert not found(3, after_bytes=size)
    assert found(3, after_bytes=size + 1)  # the file is shorter than it was: all of it
    assert found(3, after_bytes=size, inode=log.inode + 1)  # another file: all of it
    assert not has_line(str(tmp_path / "none.jsonl"), session_id, 1, after_bytes=0, inode=0)


def test_a_line_is_found_behind_garbage_and_between_long_lines(tmp_path: Path) -> None:
    path = tmp_path / _LOG_NAME
    session_id = new_session_id()
    path.write_bytes(b"\0" * (20 << 20))
    log = LogFile(str(path))
    log.append(b'{"code":"' + b"x" * (3 << 20) + b'"')
    log.append(encode(_request(session_id, 1), _OK).body)
    log.append(b'{"code":"' + b"x" * (3 << 20) + b'"')
    log.append(encode(_request(session_id, 2), _OK).body)
    os.truncate(path, path.stat().st_size - 1)  # a last line without its line end is a line
    assert [has_line(str(path), session_id, seq, after_bytes=0, inode=log.inode) for seq in (1, 2, 3)] == [
        True, True, False,
    ]  # fmt: skip


def test_a_pending_file_that_makes_no_sense_is_kept_and_named(tmp_path: Path) -> None:
    (tmp_path / "pending").mkdir()
    (tmp_path / "pending" / "damaged").write_bytes(b"what is this?\n")
    (tmp_path / "pending" / "empty").write_bytes(b"")
    log = LogFile(str(tmp_path / _LOG_NAME))
    notices = settle(str(tmp_path), log)
    assert len(notices) == 1
    assert "damaged.unreadable" in notices[0]
    assert _names(tmp_path) == ["damaged.unreadable"]
    assert settle(str(tmp_path), log) == []


def test_what_is_of_another_log_is_left_to_its_writers(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / "2.other.jsonl"))
    pending = _pending(tmp_path, new_session_id())
    _begin(pending, log, _request(pending.name, 1))
    pending.close(remove=False)
    assert settle(str(tmp_path), log) == []
    assert _names(tmp_path) == [pending.name]
    assert _settled(tmp_path) == [(1, "unknown")]


def test_other_things_in_the_pending_folder_are_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / "pending" / "folder").mkdir(parents=True)
    os.mkfifo(tmp_path / "pending" / "fifo")
    (tmp_path / "pending" / "link").symlink_to("/etc/passwd")
    log = LogFile(str(tmp_path / _LOG_NAME))
    log.append(encode(_request(new_session_id(), 1), _OK).body)
    assert settle(str(tmp_path), log) == []
    log.close()
    assert pending_requests(str(tmp_path), _LOG_NAME) == []
    assert check_pending(str(tmp_path), lambda _path: None) == []
    assert find_garbage(str(tmp_path)).files == ()
    assert compress_log(str(tmp_path / _LOG_NAME)).plain_bytes > 0
    assert _names(tmp_path) == ["fifo", "folder", "link"]


def test_readers_see_what_is_pending_and_write_nothing(tmp_path: Path) -> None:
    assert pending_requests(str(tmp_path), _LOG_NAME) == []
    log = LogFile(str(tmp_path / _LOG_NAME))
    alive, dead, done = (_pending(tmp_path, new_session_id()) for _ in range(3))
    for pending in (alive, dead, done):
        _begin(pending, log, _request(pending.name, 1))
    log.append(encode(_request(done.name, 1), _OK).body)
    dead.close(remove=False)
    before = log.known_bytes
    seen = {request.session_id: is_alive for request, is_alive in pending_requests(str(tmp_path), _LOG_NAME)}
    assert seen == {alive.name: True, dead.name: False}
    assert pending_requests(str(tmp_path), "2.other.jsonl") == []
    assert (os.stat(log.path).st_size, len(_names(tmp_path))) == (before, 3)
    assert look_at(dead.path)[1] is False


def test_a_second_log_of_the_same_session_has_a_file_of_its_own(tmp_path: Path) -> None:
    session_id = new_session_id()
    files = [_pending(tmp_path, session_id) for _ in range(3)]
    assert [file.name for file in files] == [session_id, f"{session_id}.2", f"{session_id}.3"]
    for file in files:
        file.close(remove=True)
    assert _names(tmp_path) == []


@pytest.mark.parametrize("session_id", ["", "../x", "a/b", "a\0b", "x" * 200, "é"])
def test_a_session_id_that_is_no_file_name_is_refused(session_id: str, tmp_path: Path) -> None:
    with pytest.raises(LogPathRefused, match="session id"):
        _pending(tmp_path, session_id)
    assert _names(tmp_path) == []


def test_the_executions_of_many_dead_sessions_are_settled_once_by_many_writers_at_once(
    tmp_path: Path,
) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    for number in range(200):
        pending = _pending(tmp_path, new_session_id())
        request = _request(pending.name, number + 1)
        _begin(pending, log, request)
        if number % 3 == 1:
            log.append(encode(request, _OK).body)
        if number % 3 == 2:
            _keep(pending, log, request)
        pending.close(remove=False)
    writers = [
        subprocess.Popen([sys.executable, "-c", _SETTLE, str(tmp_path), _LOG_NAME], stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    assert [writer.communicate()[1] for writer in writers] == [b""] * 6
    assert sorted(_settled(tmp_path)) == [
        (number + 1, ("unknown", "ok", "ok")[number % 3]) for number in range(200)
    ]
    assert _names(tmp_path) == []


_SETTLE = (
    "import sys\n"
    "from task_logger.log_file import LogFile\n"
    "from task_logger.settling import settle\n"
    "settle(sys.argv[1], LogFile(f'{sys.argv[1]}/{sys.argv[2]}', lock_wait_s=60))\n"
)

_SETTLE_FORKED = (
    "import os, signal, sys\n"
    "from task_logger.log_file import LogFile\n"
    "from task_logger.settling import settle\n"
    "for line in sys.stdin:\n"
    "    child = os.fork()\n"
    "    if child == 0:\n"
    "        settle(sys.argv[1], LogFile(f'{sys.argv[1]}/{sys.argv[2]}'))\n"
    "        os._exit(0)\n"
    "    print(child, flush=True)\n"
    "    os.waitpid(child, 0)\n"
)


def test_a_writer_killed_while_it_settles_leaves_one_line_for_each(tmp_path: Path) -> None:
    log = LogFile(str(tmp_path / _LOG_NAME))
    rng = random.Random(11)
    for number in range(150):
        pending = _pending(tmp_path, new_session_id())
        _begin(pending, log, _request(pending.name, number + 1, code="x" * rng.randrange(20_000)))
        pending.close(remove=False)
    with subprocess.Popen(
        [sys.executable, "-c", _SETTLE_FORKED, str(tmp_path), _LOG_NAME],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    ) as forker:  # fmt: skip
        assert forker.stdin is not None
        assert forker.stdout is not None
        for _ in range(60):
            forker.stdin.write("go\n")
            forker.stdin.flush()
            child = int(forker.stdout.readline())
            for _ in range(rng.randrange(1, 400)):
                os.sched_yield()  # a random moment of its life
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                break
        forker.stdin.close()
    assert sorted(_settled(tmp_path)) == [(number + 1, "unknown") for number in range(150)]
    assert _names(tmp_path) == []
