"""What nothing refers to is shown, and only then removed; what something may refer to never is."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from task_logger import artifacts
from task_logger.artifacts import artifact_path, put
from task_logger.compression import compress_log
from task_logger.errors import LogNotFound, LogUnreadable, MissingArtifact
from task_logger.folder_lock import folder_lock
from task_logger.garbage import Garbage, find_garbage, remove_garbage
from task_logger.record import Artifact, ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import TaskLogger, new_session_id
from tests.conftest import PATIENCE_S
from tests.task_logger.task_log_command import task_log

LONG_AGO = 1_000_000_000
TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="login")


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FLOW_", "TASK_LOG_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """A plan with an artifact that a line names, and one that nothing names; both are old."""
    with TaskLogger("P-1", 7, "login", log_dir=tmp_path) as log:
        log.write({"code": "big", "stdout": "named\n" * 300_000})
    folder = tmp_path / "P-1"
    store(folder, b"nobody's")
    make_old(folder)
    return folder


def store(folder: Path, data: bytes) -> str:
    sha256 = hashlib.sha256(data).hexdigest()
    put(str(folder), Artifact(field="x", sha256=sha256, bytes=len(data), mime="text/plain", content=data))
    return sha256


def make_old(folder: Path) -> None:
    for path in (folder / "artifacts").rglob("*"):
        os.utime(path, (LONG_AGO, LONG_AGO))


def found(folder: Path) -> list[str]:
    return sorted(os.path.basename(file.path) for file in find_garbage(str(folder)).files)


def kept(folder: Path) -> set[str]:
    return {path.name for path in (folder / "artifacts").rglob("*") if path.is_file()}


NOBODYS = hashlib.sha256(b"nobody's").hexdigest()
NAMED = hashlib.sha256(b"named\n" * 300_000).hexdigest()


def test_only_what_no_line_names_is_found_and_removed(plan: Path) -> None:
    garbage = find_garbage(str(plan))
    assert [os.path.basename(file.path) for file in garbage.files] == [NOBODYS]
    assert (garbage.bytes, garbage.referenced, garbage.young) == (8, 1, 0)
    assert kept(plan) == {NAMED, NOBODYS}
    assert remove_garbage(garbage) == list(garbage.files)
    assert kept(plan) == {NAMED}
    assert found(plan) == []


def test_what_is_young_stays(plan: Path) -> None:
    young = store(plan, b"its line is about to come")
    garbage = find_garbage(str(plan))
    assert young not in found(plan)
    assert garbage.young == 1


def test_what_is_stored_again_is_young_again_also_between_finding_and_removing(plan: Path) -> None:
    garbage = find_garbage(str(plan))
    assert store(plan, b"nobody's") == NOBODYS
    assert remove_garbage(garbage) == []
    assert NOBODYS in kept(plan)


def test_a_spool_that_was_written_long_ago_is_young_when_it_becomes_an_artifact(plan: Path) -> None:
    data = b"written, then slept for a day"
    sha256 = hashlib.sha256(data).hexdigest()
    with artifacts.new_spool(str(plan)) as spool:
        spool.write(data)
        os.utime(spool.fileno(), (LONG_AGO, LONG_AGO))
        put(str(plan), Artifact(field="x", sha256=sha256, bytes=len(data), mime="text/plain", content=spool))
    assert sha256 not in found(plan)


def test_storing_waits_for_one_who_removes_and_stores_what_is_gone_then(plan: Path) -> None:
    path = Path(artifact_path(str(plan), NOBODYS))
    with folder_lock(f"{plan}/artifacts"):
        storing = threading.Thread(target=store, args=(plan, b"nobody's"))
        storing.start()
        storing.join(0.2)
        assert storing.is_alive()
        path.unlink()
    storing.join(PATIENCE_S)
    assert path.read_bytes() == b"nobody's"


def session(root: Path) -> tuple[SessionLog, ExecutionRequest]:
    session_id = new_session_id()
    request = ExecutionRequest(
        code="1", session_id=session_id, seq=1, task=TASK, timestamp="2026-01-01T00:00:00.000Z"
    )
    return SessionLog(root=str(root), task=TASK, session_id=session_id), request


def outcome(data: bytes) -> ExecutionOutcome:
    artifact = Artifact(
        field="stdout",
        sha256=hashlib.sha256(data).hexdigest(),
        bytes=len(data),
        mime="text/plain",
        content=data,
    )
    return ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=0, stdout="…", artifacts=(artifact,)
    )


def test_what_was_stored_since_a_running_session_began_stays(plan: Path, tmp_path: Path) -> None:
    log, _ = session(tmp_path)
    pending = next((plan / "pending").iterdir())
    day_ago_ms = 86_400_000
    started = f"{int(pending.name.replace('-', '')[:12], 16) - day_ago_ms:012x}"
    pending.rename(pending.with_name(f"{started[:8]}-{started[8:]}{pending.name[13:]}"))
    hours_ago = time.time() - 7200
    while_it_ran = store(plan, b"stored two hours ago, while it ran")
    os.utime(artifact_path(str(plan), while_it_ran), (hours_ago, hours_ago))
    assert found(plan) == [NOBODYS]  # older than that session
    log.close()
    for left in (plan / "pending").iterdir():
        left.unlink()
    assert found(plan) == sorted([NOBODYS, while_it_ran])


def test_what_only_a_pending_file_names_stays(plan: Path, tmp_path: Path) -> None:
    log, request = session(tmp_path)
    log.begin(request)
    (plan / "7.login.jsonl").rename(tmp_path / "away")
    (plan / "7.login.jsonl").mkdir()
    log.finish(request, outcome(b"in a line that could not be written"))
    log.close()
    (plan / "7.login.jsonl").rmdir()
    (tmp_path / "away").rename(plan / "7.login.jsonl")
    make_old(plan)
    assert len(list((plan / "pending").iterdir())) == 1
    assert found(plan) == [NOBODYS]


def test_what_only_an_event_names_stays(plan: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from task_logger import event

    monkeypatch.setenv("TASK_LOG_DIR", str(plan.parent))
    monkeypatch.setenv("FLOW_PLAN_ID", "P-1")
    assert event("artifact.stored", {"sha256": NOBODYS, "field": "x"})
    assert found(plan) == []


def test_what_a_compressed_log_names_stays(plan: Path) -> None:
    compress_log(str(plan / "7.login.jsonl"))
    assert found(plan) == [NOBODYS]


@pytest.mark.parametrize("damage", ["garbage", "altered", "missing line", "events", "pending", "compressed"])
def test_nothing_is_removed_where_something_can_not_be_read(plan: Path, tmp_path: Path, damage: str) -> None:
    log = plan / "7.login.jsonl"
    with TaskLogger("P-1", 7, "login", log_dir=tmp_path) as writer:
        writer.write({"code": "1"})
        writer.write({"code": "2"})
    lines = log.read_bytes().splitlines(keepends=True)
    if damage == "garbage":
        log.write_bytes(lines[0] + b"garbage\n" + lines[1] + lines[2])
    elif damage == "altered":
        log.write_bytes(lines[0].replace(b"big", b"bug") + lines[1] + lines[2])
    elif damage == "missing line":
        log.write_bytes(lines[0] + lines[2])
    elif damage == "events":
        (plan / "events").mkdir()
        (plan / "events" / "7.login.events.jsonl").write_bytes(b"garbage\n")
    elif damage == "pending":
        (plan / "pending").mkdir()
        (plan / "pending" / new_session_id()).write_bytes(b"garbage\n")
    else:
        compress_log(str(log))
        packed = log.with_name(f"{log.name}.zst")
        packed.write_bytes(packed.read_bytes()[:-5])
    with pytest.raises(LogUnreadable):
        find_garbage(str(plan))


def test_a_piece_that_a_later_line_names_is_no_obstacle(plan: Path, tmp_path: Path) -> None:
    log = plan / "7.login.jsonl"
    with log.open("ab") as file:
        file.write(b'{"plan_id":"P-1","torn')
    with TaskLogger("P-1", 7, "login", log_dir=tmp_path) as writer:
        writer.write({"code": "after a death"})
    assert found(plan) == [NOBODYS]


def test_an_encrypted_plan_needs_its_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from task_logger.errors import KeyRefused

    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery staple")
    with TaskLogger("P-1", 7, "login", log_dir=tmp_path) as log:
        log.write({"code": "big", "stdout": "named\n" * 300_000})
    plan = tmp_path / "P-1"
    (named,) = kept(plan)
    assert named != NAMED
    store(plan, b"nobody's")
    make_old(plan)
    assert found(plan) == [NOBODYS]
    monkeypatch.delenv("TASK_LOG_KEY")
    with pytest.raises(KeyRefused):
        find_garbage(str(plan))


def test_leftovers_of_programs_that_died_are_found_and_other_files_are_not(plan: Path) -> None:
    for name in (
        ".0123.tmp",
        "artifacts/.12.3.tmp",
        f"artifacts/{NAMED[:2]}/.12.3.tmp",
        "artifacts/notes.txt",
    ):
        (plan / name).write_bytes(b"x")
        os.utime(plan / name, (LONG_AGO, LONG_AGO))
    assert found(plan) == sorted([NOBODYS, ".0123.tmp", ".12.3.tmp", ".12.3.tmp"])
    remove_garbage(find_garbage(str(plan)))
    assert (plan / "artifacts" / "notes.txt").exists()
    assert not (plan / ".0123.tmp").exists()


def test_a_plan_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(LogNotFound):
        find_garbage(str(tmp_path / "P-9"))


def test_a_file_that_is_gone_meanwhile_is_no_error(plan: Path) -> None:
    garbage = find_garbage(str(plan))
    gone = replace(garbage.files[0], path=artifact_path(str(plan), "0" * 64))
    both = Garbage(plan_folder=str(plan), files=(gone, *garbage.files), referenced=1, young=0)
    assert [file.path for file in remove_garbage(both)] == [garbage.files[0].path]
    with pytest.raises(MissingArtifact):
        artifacts.get(str(plan), NOBODYS)


def test_no_artifact_of_a_line_is_removed_beside_sessions_that_write(tmp_path: Path) -> None:
    """They store the same few artifacts over and over, while what nobody needs is removed over and over."""
    write = (
        "import sys\nfrom task_logger import TaskLogger\n"
        "with TaskLogger('P-1', int(sys.argv[2]), 'x', log_dir=sys.argv[1]) as log:\n"
        "    for number in range(60):\n"
        "        log.write({'code': 'x', 'stdout': str(number % 7) * 1_100_000})\n"
    )
    writers = [subprocess.Popen([sys.executable, "-c", write, str(tmp_path), str(n)]) for n in (1, 2, 3)]
    plan, removed = tmp_path / "P-1", 0
    is_writing = True
    while is_writing:
        is_writing = any(writer.poll() is None for writer in writers)
        if plan.is_dir():
            store(plan, b"nobody's")
            for path in (plan / "artifacts").glob("*/*"):
                if path.name == NOBODYS:
                    os.utime(path, (LONG_AGO, LONG_AGO))
            removed += len(remove_garbage(find_garbage(str(plan))))
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert removed > 0
    for log in plan.glob("*.jsonl"):
        for line in log.read_text().splitlines():
            for artifact in json.loads(line)["artifacts"]:
                artifacts.get(str(plan), artifact["sha256"]).close()


def test_the_command_shows_and_removes_only_with_yes(plan: Path, tmp_path: Path) -> None:
    shown = task_log(tmp_path, "gc", "P-1")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert NOBODYS[:10] in shown.stdout
    assert "1 files, 8 bytes, that nothing refers to" in shown.stdout
    assert "--yes removes them" in shown.stdout
    assert kept(plan) == {NAMED, NOBODYS}
    as_json = task_log(tmp_path, "gc", "P-1", "--yes", "--json")
    assert json.loads(as_json.stdout) == {"path": artifact_path(str(plan), NOBODYS), "bytes": 8}
    assert "removed 1 files, 8 bytes" in as_json.stderr
    assert kept(plan) == {NAMED}


def test_the_command_names_damage_in_one_line(plan: Path, tmp_path: Path) -> None:
    with (plan / "7.login.jsonl").open("ab") as file:
        file.write(b"garbage\n")
    ended = task_log(tmp_path, "gc", "P-1", "--yes")
    assert ended.returncode == 1
    assert ended.stderr.count("\n") == 1
    assert "nothing was removed" in ended.stderr
    assert kept(plan) == {NAMED, NOBODYS}


def test_a_folder_that_is_none_is_named_and_not_taken_for_output_that_can_not_be_written(
    plan: Path, tmp_path: Path
) -> None:
    shutil.rmtree(plan / "artifacts")
    (plan / "artifacts").touch()
    for arguments in (("gc", "P-1"), ("show", "--plan", "P-1", "--artifact", "012345")):
        ended = task_log(tmp_path, *arguments)
        assert ended.returncode == 1
        assert f"'{plan}/artifacts' can't be read: Not a directory" in ended.stderr
