"""An archive holds a plan as it was written, or there is none."""

from __future__ import annotations

import hashlib
import io
import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Mapping
from pathlib import Path

import pytest
import zstandard

from task_logger.archive import Archive
from task_logger.artifacts import artifact_path
from task_logger.compression import compress_log
from task_logger.errors import ConfigurationError, ExportRefused, LogNotFound, LogUnreadable, TaskLogError
from task_logger.export import MANIFEST, export_plan
from task_logger.keys import KeySource
from task_logger.since import since_timestamp
from task_logger.verification import verify_log
from task_logger.writer import TaskLogger, new_session_id
from tests.conftest import WaitUntil
from tests.task_logger.task_log_command import task_log


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FLOW_", "TASK_LOG_"))]:
        monkeypatch.delenv(name)


BIG = "big output\n" * 150_000
BIG_SHA256 = hashlib.sha256(BIG.encode()).hexdigest()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root with a plan of two tasks, one of them with an artifact."""
    root = tmp_path / "root"
    with TaskLogger("P-1", 7, "login", log_dir=root) as log:
        for number in range(30):
            log.write({"code": f"x = {number}", "timestamp": "2026-01-05T00:00:00.000Z"})
        log.write({"code": "print(big)", "stdout": BIG, "timestamp": "2026-01-05T00:00:01.000Z"})
    with TaskLogger("P-1", 8, "logout", log_dir=root) as log:
        log.write({"code": "y", "timestamp": "2026-01-01T00:00:00.000Z"})
    return root


def plan(root: Path) -> Path:
    return root / "P-1"


def unpacked(archive: Path) -> Mapping[str, bytes]:
    with (
        archive.open("rb") as file,
        zstandard.ZstdDecompressor().stream_reader(file) as plain,
        tarfile.open(fileobj=io.BytesIO(plain.read())) as tar,
    ):
        return {
            member.name: (tar.extractfile(member) or io.BytesIO()).read()
            for member in tar
            if member.mode == 0o600
        }


def test_an_archive_holds_every_byte_and_a_manifest_of_it(root: Path, tmp_path: Path) -> None:
    archive = tmp_path / "P-1.tar.zst"
    done = export_plan(str(plan(root)), str(archive))
    assert (done.logs, done.artifacts, done.bytes) == (2, 1, archive.stat().st_size)
    assert archive.stat().st_mode & 0o777 == 0o600
    files = dict(unpacked(archive))
    manifest = json.loads(files.pop(MANIFEST))
    in_plan = {
        str(path.relative_to(root)): path.read_bytes() for path in plan(root).rglob("*") if path.is_file()
    }
    assert files == in_plan
    assert {entry["path"]: entry["sha256"] for entry in manifest["files"]} == {
        name: hashlib.sha256(data).hexdigest() for name, data in files.items()
    }
    heads = {entry["path"]: (entry["n"], entry["hash"]) for entry in manifest["files"] if "n" in entry}
    assert heads == {f"P-1/{path.name}": verify_log(str(path)).head for path in plan(root).glob("*.jsonl")}


def test_tar_and_the_reader_take_what_is_in_it(root: Path, tmp_path: Path) -> None:
    export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    tar = zstandard.ZstdDecompressor().stream_reader((tmp_path / "a.tar.zst").read_bytes()).read()
    (tmp_path / "elsewhere").mkdir()
    subprocess.run(["tar", "-x", "-C", str(tmp_path / "elsewhere")], input=tar, check=True)
    ended = task_log(tmp_path / "elsewhere", "verify")
    assert ended.returncode == 0, ended.stdout
    assert "31 lines" in ended.stdout
    shown = task_log(tmp_path / "elsewhere", "show", "--plan", "P-1", "--task", "T-7", "31", "--artifact")
    assert shown.stdout == BIG


def damaged(root: Path, damage: str) -> None:
    log = plan(root) / "7.login.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    artifact = Path(artifact_path(str(plan(root)), BIG_SHA256))
    if damage == "altered line":
        log.write_bytes(b"".join([*lines[:5], lines[5].replace(b"x = 5", b"x = 6"), *lines[6:]]))
    elif damage == "missing line":
        log.write_bytes(b"".join([*lines[:5], *lines[6:]]))
    elif damage == "garbage":
        log.write_bytes(b"".join([*lines[:5], b"garbage\n", *lines[5:]]))
    elif damage == "missing artifact":
        artifact.unlink()
    elif damage == "damaged artifact":
        artifact.write_bytes(b"B" + artifact.read_bytes()[1:])
    elif damage == "altered line, compressed":
        damaged(root, "altered line")
        compress_log(str(log))


DAMAGES = ["altered line", "missing line", "garbage", "missing artifact", "damaged artifact",
           "altered line, compressed"]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_plan_that_is_not_as_it_was_written_gives_no_archive(
    root: Path, tmp_path: Path, damage: str
) -> None:
    damaged(root, damage)
    with pytest.raises(ExportRefused) as refused:
        export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    assert refused.value.findings
    assert [path.name for path in tmp_path.iterdir()] == ["root"]
    ended = task_log(root, "export", "P-1", "-o", str(tmp_path / "a.tar.zst"))
    assert ended.returncode == 1
    assert "no archive was written" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["root"]


def test_a_piece_that_a_later_line_names_goes_along(root: Path, tmp_path: Path) -> None:
    log = plan(root) / "7.login.jsonl"
    with log.open("ab") as file:
        file.write(b'{"plan_id":"P-1","torn')
    with TaskLogger("P-1", 7, "login", log_dir=root) as writer:
        writer.write({"code": "after a death"})
    done = export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    assert [finding.kind for finding in done.findings] == ["torn"]
    assert unpacked(tmp_path / "a.tar.zst")["P-1/7.login.jsonl"] == log.read_bytes()


def test_compressed_logs_go_along_as_they_are(root: Path, tmp_path: Path) -> None:
    compress_log(str(plan(root) / "7.login.jsonl"))
    export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    files = unpacked(tmp_path / "a.tar.zst")
    name = "7.login.jsonl.zst"
    assert files[f"P-1/{name}"] == (plan(root) / name).read_bytes()
    entry = next(one for one in json.loads(files[MANIFEST])["files"] if one["path"] == f"P-1/{name}")
    assert entry["n"] == 31


def test_since_takes_whole_logs_and_only_what_they_name(root: Path, tmp_path: Path) -> None:
    export_plan(str(plan(root)), str(tmp_path / "new.tar.zst"), since="2026-01-02T00:00:00.000Z")
    files = unpacked(tmp_path / "new.tar.zst")
    assert {name for name in files if name.endswith(".jsonl")} == {"P-1/7.login.jsonl"}
    assert files["P-1/7.login.jsonl"] == (plan(root) / "7.login.jsonl").read_bytes()
    with TaskLogger("P-1", 8, "logout", log_dir=root) as log:
        log.write({"code": "z"})
    export_plan(str(plan(root)), str(tmp_path / "newer.tar.zst"), since="2026-02-01T00:00:00.000Z")
    assert set(unpacked(tmp_path / "newer.tar.zst")) == {"P-1/8.logout.jsonl", MANIFEST}
    with pytest.raises(LogNotFound, match="since 2099"):
        export_plan(str(plan(root)), str(tmp_path / "none.tar.zst"), since="2099-01-01T00:00:00.000Z")


def test_an_encrypted_plan_stays_encrypted_and_is_checked_with_its_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "root"
    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery staple")
    with TaskLogger("P-1", 7, "login", log_dir=root) as log:
        log.write({"code": "top secret plans", "stdout": BIG})
    key = KeySource("correct horse battery staple")
    export_plan(str(plan(root)), str(tmp_path / "with.tar.zst"), key=key)
    monkeypatch.delenv("TASK_LOG_KEY")
    export_plan(str(plan(root)), str(tmp_path / "without.tar.zst"))
    for name in ("with", "without"):
        files = unpacked(tmp_path / f"{name}.tar.zst")
        assert {"P-1/keys/7.login.key", "P-1/keys/plan.key"} <= set(files)
        assert not any(b"top secret" in data or b"big output" in data for data in files.values())
    (artifact,) = (path for path in (plan(root) / "artifacts").rglob("*") if path.is_file())
    data = bytearray(artifact.read_bytes())
    data[-1] ^= 1
    artifact.write_bytes(data)
    with pytest.raises(ExportRefused):
        export_plan(str(plan(root)), str(tmp_path / "damaged.tar.zst"), key=key)
    with pytest.raises(ConfigurationError):
        export_plan(str(plan(root)), str(tmp_path / "s.tar.zst"), since="2026-01-01T00:00:00.000Z")


def test_the_key_of_placeholders_does_not_leave_the_machine(root: Path, tmp_path: Path) -> None:
    with TaskLogger("P-1", 7, "login", log_dir=root) as log:
        log.write({"code": "token = 'ghp_" + "a1B2c3D4e5F6" * 3 + "'"})
    export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    assert not any("redaction" in name for name in unpacked(tmp_path / "a.tar.zst"))


def test_what_has_no_line_yet_is_named(root: Path, tmp_path: Path) -> None:
    session_id = new_session_id()
    code = (
        "import os, sys\nfrom task_logger.record import ExecutionRequest, TaskIds\n"
        "from task_logger.session_log import SessionLog\n"
        "task = TaskIds(plan_id='P-1', task_id='T-7', task_name='login')\n"
        "log = SessionLog(root=sys.argv[1], task=task, session_id=sys.argv[2])\n"
        "log.begin(ExecutionRequest(code='never ends', session_id=sys.argv[2], seq=1, task=task,"
        " timestamp='2026-01-01T00:00:00.000Z'))\nos._exit(0)"
    )
    subprocess.run([sys.executable, "-c", code, str(root), session_id], check=True)
    done = export_plan(str(plan(root)), str(tmp_path / "a.tar.zst"))
    assert [finding.kind for finding in done.pending] == ["pending_unsettled"]
    assert len(json.loads(unpacked(tmp_path / "a.tar.zst")[MANIFEST])["pending"]) == 1


def test_a_file_that_is_there_and_a_plan_that_is_not_are_named(root: Path, tmp_path: Path) -> None:
    there = tmp_path / "a.tar.zst"
    there.write_bytes(b"precious")
    with pytest.raises(LogUnreadable, match="there already"):
        export_plan(str(plan(root)), str(there))
    assert there.read_bytes() == b"precious"
    for folder, target in ((root / "P-9", tmp_path / "b"), (plan(root), tmp_path / "no" / "b")):
        with pytest.raises(TaskLogError) as caught:
            export_plan(str(folder), str(target))
        assert ".tmp" not in str(caught.value)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tar.zst", "root"]


def test_what_can_not_be_read_or_written_is_named(root: Path, tmp_path: Path) -> None:
    archive = tmp_path / "a.tar.zst"
    link = plan(root) / "8.x.jsonl"
    link.symlink_to(link.name)
    with pytest.raises(LogUnreadable, match=r"8\.x\.jsonl' can't be read: .*; no archive was written"):
        export_plan(str(plan(root)), str(archive))
    assert not archive.exists()
    link.unlink()
    with pytest.raises(TaskLogError, match=r"the archive '.*x{300}' can't be written: File name too long"):
        export_plan(str(plan(root)), str(tmp_path / ("x" * 300)))


def test_an_archive_has_no_name_before_it_is_whole(tmp_path: Path) -> None:
    with Archive(str(tmp_path / "a.tar.zst")) as archive:
        archive.begin("a", 1, modified_s=0)
        archive.write(b"x")
        archive.end(1)
        assert list(tmp_path.iterdir()) == []  # what a program that is killed now leaves
        archive.publish()
    assert unpacked(tmp_path / "a.tar.zst") == {"a": b"x"}


def _line_ends(plan: Path) -> int:
    return sum(path.read_bytes().count(b"\n") for path in plan.glob("*.jsonl"))


def test_while_sixteen_writers_run_no_line_is_lost_doubled_or_in_part(
    tmp_path: Path, wait_until: WaitUntil
) -> None:
    root = tmp_path / "root"
    write = (
        "import sys, time\nfrom task_logger import TaskLogger\n"
        "with TaskLogger('P-1', 1 + int(sys.argv[2]) % 4, 'x', log_dir=sys.argv[1]) as log:\n"
        "    print(flush=True)\n"
        "    for number in range(1_000_000):\n"
        "        big = 'o' * (1_100_000 if number % 200 == 99 else 10)\n"
        "        time.sleep(0.005)\n"
        "        log.write({'code': f'{sys.argv[2]} {number}', 'stdout': big})\n"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", write, str(root), str(n)], stdout=subprocess.PIPE)
        for n in range(16)
    ]
    try:
        for writer in writers:
            assert writer.stdout is not None
            writer.stdout.readline()
        counts: list[int] = []
        for number in range(4):
            wait_until(lambda: _line_ends(plan(root)) > sum(counts[-4:]))
            before = {path.name: path.read_bytes().count(b"\n") for path in plan(root).glob("*.jsonl")}
            archive = tmp_path / f"{number}.tar.zst"
            done = export_plan(str(plan(root)), str(archive))
            assert done.findings == ()
            for name, data in unpacked(archive).items():
                if name.endswith(".jsonl"):
                    lines = [json.loads(line) for line in data.splitlines()]
                    assert data.endswith(b"\n")
                    assert [line["n"] for line in lines] == list(range(1, len(lines) + 1))
                    assert len({line["code"] for line in lines}) == len(lines)
                    assert len(lines) >= before[name.removeprefix("P-1/")]
                    counts.append(len(lines))
        assert sum(counts[-4:]) > sum(counts[:4])
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2h", "2026-01-31T21:59:59.999Z"),
        ("3d", "2026-01-28T23:59:59.999Z"),
        ("2026-01-31", "2026-01-31T00:00:00.000Z"),
        ("2026-01-31T12:00", "2026-01-31T12:00:00.000Z"),
        ("2026-01-31T12:00:01.5+02:00", "2026-01-31T10:00:01.500Z"),
        ("2026-01-31T12:00:01.123Z", "2026-01-31T12:00:01.123Z"),
    ],
)
def test_times_are_understood_as_people_write_them(text: str, expected: str) -> None:
    now_ns = 1_769_903_999_999 * 10**6
    assert since_timestamp(text, now_ns=now_ns) == expected


@pytest.mark.parametrize("text", ["", "yesterday", "2x", "-1h", "2026-13-01", "0001-01-01T00:00+23:00"])
def test_a_time_that_makes_no_sense_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--since"):
        since_timestamp(text)


def test_the_command_says_what_it_wrote_and_show_takes_since_too(root: Path, tmp_path: Path) -> None:
    ended = task_log(root, "export", "P-1", "-o", str(tmp_path / "a.tar.zst"), "--json")
    assert (ended.returncode, ended.stderr) == (0, "")
    assert json.loads(ended.stdout)["logs"] == 2
    where = ("show", "--plan", "P-1", "--task", "T-7", "--json", "--since")
    assert len(task_log(root, *where, "2026-01-05").stdout.splitlines()) == 31
    (line,) = task_log(root, *where, "2026-01-05T00:00:01Z").stdout.splitlines()
    assert json.loads(line)["n"] == 31
    assert task_log(root, *where, "nonsense").returncode == 2
