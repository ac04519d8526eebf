"""Every execution has exactly one line, whatever dies and when; a failing log is loud and stops no work."""

from __future__ import annotations

import gc
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from task_logger.artifacts import get
from task_logger.errors import LogClosed, LogDiskFull, LogFailed, LogMoved, LogPathRefused, LogUnavailable
from task_logger.log_file import LogFile
from task_logger.record import ExecutionOutcome, ExecutionRecord, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.settling import settle
from task_logger.writer import new_session_id
from tests.conftest import PATIENCE_S
from tests.task_logger.log_check import check_log

_TASK = TaskIds(plan_id="P", task_id="T-1", task_name="name")
_OK = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)


class _Session:
    """A session log, and the requests of one session."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.session_id = new_session_id()
        self.log = SessionLog(root=str(root), task=_TASK, session_id=self.session_id, **options)
        self.seq = 0

    def begin(self, code: str = "x = 1") -> ExecutionRequest:
        request = ExecutionRequest(
            code=code,
            session_id=self.session_id,
            seq=self.seq + 1,
            task=_TASK,
            timestamp="2026-11-20T10:00:00.000Z",
        )
        self.log.begin(request)
        self.seq += 1
        return request

    def run(self, code: str = "x = 1", outcome: ExecutionOutcome = _OK) -> ExecutionRecord:
        return self.log.finish(self.begin(code), outcome)

    def die(self) -> None:
        """Let go of everything, as the kernel does for a process that is gone."""
        self.log._files.close(remove_pending=False)


def _log_path(root: Path) -> Path:
    return root / "P" / "1.name.jsonl"


def _lines(root: Path) -> list[tuple[str, int, str]]:
    """Return session, `seq` and status of each line of a log whose chain is whole."""
    checked = check_log(_log_path(root))
    assert checked.breaks == []
    assert checked.unnamed == []
    return [(line["session_id"], line["seq"], line["status"]) for line in checked.lines]


def _pending_names(root: Path) -> list[str]:
    return [entry.name for entry in (root / "P" / "pending").iterdir()]


def _next_writer(root: Path) -> None:
    log = LogFile(str(_log_path(root)))
    settle(str(root / "P"), log)
    log.close()


def test_an_execution_is_one_line_and_its_record_has_the_head(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    records = [session.run() for _ in range(3)]
    session.log.close()
    session.log.close()
    assert [record.head and record.head.n for record in records] == [1, 2, 3]
    assert records[0].notices == ()
    assert records[-1].head == LogFile(session.log.path).head
    assert _lines(tmp_path) == [(session.session_id, seq, "ok") for seq in (1, 2, 3)]
    assert _pending_names(tmp_path) == []


def test_what_does_not_fit_a_line_is_stored_before_the_line(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    record = session.run(outcome=replace(_OK, stdout="é" * 2_000_000))
    session.log.close()
    (artifact,) = record.outcome.artifacts
    assert (artifact.field, artifact.bytes, artifact.content) == ("stdout", 4_000_000, None)
    with get(str(tmp_path / "P"), artifact.sha256) as file:
        assert file.read() == "é".encode() * 2_000_000


@pytest.mark.parametrize("moment", ["before begin", "running", "after finish"])
def test_a_session_that_dies_leaves_one_line_for_each_execution(moment: str, tmp_path: Path) -> None:
    session = _Session(tmp_path, route="local", isolation="none")
    session.run()
    if moment != "before begin":
        request = session.begin()
        if moment == "after finish":
            session.log.finish(request, _OK)
    session.die()
    _next_writer(tmp_path)
    last = {"before begin": [], "running": [(session.session_id, 2, "unknown")]}.get(
        moment, [(session.session_id, 2, "ok")]
    )
    assert _lines(tmp_path) == [(session.session_id, 1, "ok"), *last]
    assert _pending_names(tmp_path) == []


def test_another_session_settles_at_its_start_and_says_so(tmp_path: Path) -> None:
    dead = _Session(tmp_path)
    dead.begin()
    dead.die()
    session = _Session(tmp_path)
    record = session.run()
    assert any(dead.session_id in notice for notice in record.notices)
    assert session.run().notices == ()
    session.log.close()
    assert [line[2] for line in _lines(tmp_path)] == ["unknown", "ok", "ok"]


def test_closing_during_an_execution_leaves_its_line(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    session.begin()
    session.log.close()
    assert _lines(tmp_path) == [(session.session_id, 1, "unknown")]
    assert _pending_names(tmp_path) == []
    with pytest.raises(LogClosed):
        session.begin()


def test_while_the_log_cannot_be_written_lines_are_kept_and_appended_in_order(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    session.run()
    path, away = _log_path(tmp_path), tmp_path / "away"
    path.rename(away)
    path.mkdir()  # now no log can be there
    for _ in range(3):
        record = session.run()
        assert record.head is None
        assert any("is not in the log" in notice for notice in record.notices)
    path.rmdir()
    away.rename(path)
    record = session.run()
    assert record.head is not None
    assert record.head.n == 5
    assert session.run().notices == ()
    session.log.close()
    assert _lines(tmp_path) == [(session.session_id, seq, "ok") for seq in range(1, 7)]
    assert _pending_names(tmp_path) == []


def test_a_removed_log_begins_anew_and_nothing_later_is_lost(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    session.run()
    _log_path(tmp_path).unlink()
    record = session.run()
    assert record.head is None
    session.run()
    session.log.close()
    assert _lines(tmp_path) == [(session.session_id, 2, "ok"), (session.session_id, 3, "ok")]


def test_what_is_kept_outlives_its_session(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    session.run()
    path, away = _log_path(tmp_path), tmp_path / "away"
    path.rename(away)
    path.mkdir()
    for _ in range(3):
        session.run()
    session.begin()
    session.die()
    path.rmdir()
    away.rename(path)
    _next_writer(tmp_path)
    assert _lines(tmp_path) == [
        (session.session_id, seq, status)
        for seq, status in enumerate(("ok", "ok", "ok", "ok", "unknown"), start=1)
    ]


def test_what_stays_unwritten_at_the_end_is_named_on_stderr(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = _Session(tmp_path)
    path, away = _log_path(tmp_path), tmp_path / "away"
    path.rename(away)
    path.mkdir()
    session.run()
    session.log.close()
    said = capsys.readouterr().err
    assert str(path) in said
    assert session.session_id in said
    path.rmdir()
    away.rename(path)
    _next_writer(tmp_path)
    assert _lines(tmp_path) == [(session.session_id, 1, "ok")]


def test_a_folder_that_is_gone_with_all_in_it_is_said_to_be_lost(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    session = _Session(tmp_path)
    folder = _log_path(tmp_path).parent
    shutil.rmtree(folder)
    folder.touch()
    session.run()
    session.log.close()
    said = capsys.readouterr().err
    assert "LOST" in said
    assert "stays in" not in said


def test_a_full_disk_delays_lines_and_loses_none(small_disk: Path) -> None:
    session = _Session(small_disk)
    code = "x" * 200_000
    records = [session.run(code) for _ in range(8)]
    heads = [record.head is not None for record in records]
    assert heads[0] is True
    assert heads[-1] is False
    assert all(record.head or record.notices for record in records)
    subprocess.run(["mount", "-o", "remount,size=16m", str(small_disk)], check=True)
    assert session.run().head is not None
    session.log.close()
    assert _lines(small_disk) == [(session.session_id, seq, "ok") for seq in range(1, 10)]
    assert len(check_log(_log_path(small_disk)).pieces) <= 2


def test_an_unlogged_end_on_a_full_disk_is_loud(small_disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    session = _Session(small_disk)
    for _ in range(8):
        session.run("x" * 200_000)
    session.log.close()
    said = capsys.readouterr().err
    assert "LOST" in said
    assert session.session_id in said
    assert "the line of execution 8" in said


def test_a_stopped_lock_holder_delays_lines_and_stops_no_work(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    session.run()
    assert session.log._files.log is not None
    session.log._files.log.lock_wait_s = 0.1
    holder = LogFile(session.log.path)
    assert holder._descriptor.try_lock()
    records = [session.run() for _ in range(3)]
    assert [record.head for record in records] == [None] * 3
    assert str(os.getpid()) in " ".join(records[0].notices)
    holder.close()
    assert session.run().head is not None
    session.log.close()
    assert _lines(tmp_path) == [(session.session_id, seq, "ok") for seq in range(1, 6)]


# Strict


def _run_often(session: _Session, times: int) -> None:
    for _ in range(times):
        session.run("x" * 200_000)


def test_in_strict_mode_nothing_runs_that_cannot_be_logged(tmp_path: Path) -> None:
    session = _Session(tmp_path, strict=True)
    session.run()
    path, away = _log_path(tmp_path), tmp_path / "away"
    path.rename(away)
    with pytest.raises(LogMoved):
        session.begin()
    away.rename(path)
    assert session.run().head is not None
    session.log.close()
    assert len(_lines(tmp_path)) == 2


def test_in_strict_mode_a_line_that_failed_is_an_error_and_the_last(tmp_path: Path) -> None:
    session = _Session(tmp_path, strict=True)
    request = session.begin()
    path, away = _log_path(tmp_path), tmp_path / "away"
    path.rename(away)
    with pytest.raises(LogMoved):
        session.log.finish(request, _OK)
    away.rename(path)
    with pytest.raises(LogFailed) as refused:
        session.begin()
    assert isinstance(refused.value.cause, LogMoved)
    session.log.close()  # what did run gets its line after all
    assert _lines(tmp_path) == [(session.session_id, 1, "ok")]


def test_in_strict_mode_a_full_disk_ends_the_session_with_its_name(small_disk: Path) -> None:
    session = _Session(small_disk, strict=True)
    with pytest.raises(LogDiskFull):
        _run_often(session, 8)
    with pytest.raises((LogFailed, LogDiskFull)):
        session.begin()
    session.die()


# The start


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("what", ["file", "symlink"])
def test_a_plan_folder_that_is_none_is_refused(what: str, strict: bool, tmp_path: Path) -> None:
    if what == "file":
        (tmp_path / "P").write_text("")
    else:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "P").symlink_to("elsewhere")
    with pytest.raises(LogPathRefused, match="folder"):
        _Session(tmp_path, strict=strict)


def test_a_root_with_a_nul_is_refused() -> None:
    with pytest.raises(LogPathRefused, match="NUL"):
        _Session(Path("/tmp/a\0b"))


@pytest.fixture
def read_only_disk(small_disk: Path) -> Path:
    """A file system of its own that takes no writes."""
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    return small_disk


def test_a_log_that_cannot_be_made_at_the_start_is_made_when_it_can_be(read_only_disk: Path) -> None:
    session = _Session(read_only_disk)
    assert session.run().head is None
    assert session.run().head is None
    subprocess.run(["mount", "-o", "remount,rw", str(read_only_disk)], check=True)
    assert session.run().head is not None
    session.log.close()
    assert _lines(read_only_disk) == [(session.session_id, seq, "ok") for seq in (1, 2, 3)]


def test_in_strict_mode_a_log_that_cannot_be_made_is_an_error(read_only_disk: Path) -> None:
    with pytest.raises(LogUnavailable, match="Read-only"):
        _Session(read_only_disk, strict=True)


def test_a_relative_root_stays_the_same_when_the_working_folder_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    session = _Session(Path("logs"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    session.run()
    session.log.close()
    assert len(_lines(tmp_path / "logs")) == 1


def test_many_sessions_leak_no_descriptor_and_no_file(tmp_path: Path) -> None:
    gc.collect()  # of earlier tests: it must not close anything in between
    before = len(os.listdir("/proc/self/fd"))  # counted, not used
    for _ in range(3):
        sessions = [_Session(tmp_path) for _ in range(50)]
        for session in sessions:
            session.run()
        for session in sessions:
            session.log.close()
    assert len(os.listdir("/proc/self/fd")) == before
    assert len(_lines(tmp_path)) == 150
    assert _pending_names(tmp_path) == []


# Interrupted, or killed, at any moment


class _Interrupt(Exception):
    pass


def test_an_interrupt_while_lines_are_written_leaves_one_line_for_each_execution(tmp_path: Path) -> None:
    session = _Session(tmp_path)
    rng = random.Random(5)

    def interrupt(number: int, frame: object) -> None:
        raise _Interrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    interrupted, shortest_s = 0, 1.0
    gc.disable()  # an interrupt that comes within a callback of the collector is lost
    try:
        for number in range(600):
            request = session.begin("x" * 3000)
            if number % 2:  # whole, which also tells how long it takes on this machine
                started_s = time.perf_counter()
                session.log.finish(request, _OK)
                shortest_s = min(shortest_s, time.perf_counter() - started_s)
                continue
            try:
                signal.setitimer(signal.ITIMER_REAL, rng.uniform(1e-6, min(2e-4, 2 * shortest_s)))
                session.log.finish(request, _OK)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except _Interrupt:
                interrupted += 1
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        gc.enable()
    session.log.close()
    assert interrupted > 20
    lines = _lines(tmp_path)
    assert sorted(seq for _, seq, _ in lines) == list(range(1, 601))
    assert sum(status == "ok" for _, _, status in lines) >= 300


_RUN_FOREVER = """
import os, sys
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import new_session_id

task = TaskIds(plan_id="P", task_id="T-1", task_name="name")
outcome = ExecutionOutcome(status="ok", route="worker", isolation="process", elapsed_ms=1.5)

def run_forever():
    session_id = new_session_id()
    log = SessionLog(root=sys.argv[1], task=task, session_id=session_id, fsync=sys.argv[2] == "fsync")
    seq = 0
    while True:
        seq += 1
        request = ExecutionRequest(code="x" * (seq % 7 * 3000), session_id=session_id, seq=seq, task=task,
                                   timestamp="2026-11-20T10:00:00.000Z")
        os.write(1, b"%b %d asks\\n" % (session_id.encode(), seq))
        log.begin(request)
        os.write(1, b"%b %d begun\\n" % (session_id.encode(), seq))
        log.finish(request, outcome)
        os.write(1, b"%b %d done\\n" % (session_id.encode(), seq))

for line in sys.stdin:
    child = os.fork()
    if child == 0:
        run_forever()
    os.write(2, b"%d\\n" % child)
    os.waitpid(child, 0)
"""


def _kill_sessions(root: Path, kills: int, mode: str) -> dict[tuple[str, int], str]:
    """Kill sessions at random moments; returns how far each execution got by their own word."""
    rng = random.Random(kills)
    said = root / "said"
    with (
        said.open("wb") as output,
        subprocess.Popen(
            [sys.executable, "-c", _RUN_FOREVER, str(root), mode],
            stdin=subprocess.PIPE, stdout=output, stderr=subprocess.PIPE, text=True,
        ) as forker,
    ):  # fmt: skip
        assert forker.stdin is not None
        assert forker.stderr is not None
        for _ in range(kills):
            forker.stdin.write("go\n")
            forker.stdin.flush()
            child = int(forker.stderr.readline())
            enough_bytes = said.stat().st_size + rng.randrange(2000)
            deadline = time.monotonic() + PATIENCE_S
            while said.stat().st_size < enough_bytes:
                assert forker.poll() is None
                assert time.monotonic() < deadline, "it has ended by itself"
                os.sched_yield()
            for _ in range(rng.randrange(50)):
                os.sched_yield()  # a random moment of its life
            os.kill(child, signal.SIGKILL)
        forker.stdin.close()
    states: dict[tuple[str, int], str] = {}
    for line in said.read_text().splitlines():
        session_id, seq, state = line.split()
        states[session_id, int(seq)] = state
    return states


@pytest.mark.parametrize("mode", ["plain", "fsync"])
def test_a_session_killed_at_any_moment_leaves_exactly_one_line_for_each_execution(
    mode: str, tmp_path: Path
) -> None:
    states = _kill_sessions(tmp_path, 80, mode)
    _next_writer(tmp_path)
    lines = _lines(tmp_path)
    found = {(session_id, seq): status for session_id, seq, status in lines}
    assert len(found) == len(lines)
    for execution, state in states.items():
        if state == "done":
            assert found[execution] == "ok"
        elif state == "begun":
            assert found[execution] in {"ok", "unknown"}
    assert set(found) <= set(states)
    assert sum(state == "done" for state in states.values()) > 20
    assert _pending_names(tmp_path) == []
