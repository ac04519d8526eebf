"""What a caller wants kept is kept, referred to, and given back; so is what didn't fit a line."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from json_repl import Session
from json_repl.errors import InvalidRequest, SessionClosed
from task_logger import artifacts, task_context
from task_logger.artifact_view import read_range
from task_logger.codec import encode
from task_logger.errors import ArtifactNotStored
from task_logger.event_view import read_events
from task_logger.garbage import find_garbage
from task_logger.record import ExecutionOutcome, ExecutionRequest, TaskIds
from task_logger.session_log import SessionLog
from task_logger.writer import new_session_id


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith(("FLOW_", "TASK_LOG_"))]:
        monkeypatch.delenv(name)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    with Session("local", plan_id="P-1", task_id="T-7", task_name="login", log_dir=tmp_path / "root") as one:
        yield one


def plan(tmp_path: Path) -> Path:
    return tmp_path / "root" / "P-1"


def content(folder: Path, sha256: object) -> bytes:
    with artifacts.get(str(folder), str(sha256)) as file:
        return file.read()


def test_a_file_is_kept_and_its_reference_says_what_it_is(session: Session, tmp_path: Path) -> None:
    table = tmp_path / "täble.csv"
    table.write_bytes(b"a,b\n1,2\n")
    reference = session.artifact(table)
    assert reference == {
        "field": "täble.csv",
        "sha256": hashlib.sha256(b"a,b\n1,2\n").hexdigest(),
        "bytes": 8,
        "mime": "text/csv",
    }
    table.unlink()
    assert content(plan(tmp_path), reference["sha256"]) == b"a,b\n1,2\n"


@pytest.mark.parametrize(
    ("mime", "expected"), [(None, "application/octet-stream"), ("image/png", "image/png")]
)
def test_bytes_are_kept_once(session: Session, tmp_path: Path, mime: str | None, expected: str) -> None:
    first, second = session.artifact(b"\x89PNG\0\xff", mime), session.artifact(b"\x89PNG\0\xff", mime)
    assert first == second
    assert (first["field"], first["mime"]) == ("bytes", expected)
    assert len([path for path in (plan(tmp_path) / "artifacts").rglob("*") if path.is_file()]) == 1


def test_an_event_refers_to_it_so_that_it_is_no_garbage(session: Session, tmp_path: Path) -> None:
    reference = session.artifact(b"kept")
    session.close()
    (event,) = (
        event
        for event in read_events(str(plan(tmp_path) / "7.login.jsonl"))
        if isinstance(event, dict) and event.get("name") == "artifact.stored"
    )
    assert event["value"] == reference
    assert event["session_id"] == session.session_id
    for path in (plan(tmp_path) / "artifacts").rglob("*"):
        os.utime(path, (1_000_000_000, 1_000_000_000))
    assert find_garbage(str(plan(tmp_path))).files == ()


def test_it_goes_to_the_plan_of_the_context(session: Session, tmp_path: Path) -> None:
    with task_context(plan_id="P-2", step="4"):
        reference = session.artifact(b"of another plan")
    assert content(tmp_path / "root" / "P-2", reference["sha256"]) == b"of another plan"
    (event,) = read_events(str(tmp_path / "root" / "P-2" / "7.login.jsonl"))
    assert isinstance(event, dict)
    assert event["tags"] == {"step": "4"}


def test_secrets_in_it_are_not_kept(
    session: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    session.redact("pin", "hunter2hunter2")
    reference = session.artifact(b"user,pin\njoe,hunter2hunter2\n", "text/csv")
    kept = content(plan(tmp_path), reference["sha256"])
    assert b"hunter2" not in kept
    assert kept.startswith("user,pin\njoe,⟨secret:".encode())
    assert reference["bytes"] == len(kept)
    for path in plan(tmp_path).rglob("*"):
        assert path.is_dir() or b"hunter2" not in path.read_bytes()


def test_it_is_encrypted_where_the_log_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TASK_LOG_KEY", "correct horse battery staple")
    with Session("local", plan_id="P-1", task_id="T-7", log_dir=tmp_path / "root") as one:
        reference = one.artifact(b"top secret " * 200_000)
    for path in plan(tmp_path).rglob("*"):
        assert path.is_dir() or b"top secret" not in path.read_bytes()
    assert content(plan(tmp_path), reference["sha256"]) == b"top secret " * 200_000


@pytest.mark.parametrize("wrong", ["fifo", "folder", "number", "text", "NUL", "mime"])
def test_what_can_not_be_kept_is_named_and_nothing_is_left(
    session: Session, tmp_path: Path, wrong: str
) -> None:
    os.mkfifo(tmp_path / "fifo")
    sources = {
        "fifo": tmp_path / "fifo",
        "folder": tmp_path,
        "number": 7,
        "text": tmp_path / "no",
        "NUL": "\0",
        "mime": b"",
    }
    error = FileNotFoundError if wrong == "text" else InvalidRequest
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(error):
        session.artifact(sources[wrong], "no mime" if wrong == "mime" else None)  # type: ignore[arg-type]  # wrong on purpose
    assert not [path for path in (plan(tmp_path) / "artifacts").rglob("*") if path.is_file()]
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_closed_session_keeps_nothing(session: Session) -> None:
    session.close()
    with pytest.raises(SessionClosed):
        session.artifact(b"late")


def test_without_an_event_that_refers_to_it_nobody_is_told_that_it_is_kept(
    session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    events = plan(tmp_path) / "events"
    if events.is_dir():
        for path in events.iterdir():
            path.unlink()
        events.rmdir()
    events.write_bytes(b"in the way")
    with pytest.raises(ArtifactNotStored, match="event"):
        session.artifact(b"x")
    assert "events are dropped" in capsys.readouterr().err


def test_a_file_of_any_length_takes_little_memory(tmp_path: Path) -> None:
    code = (
        "import resource, sys\nfrom json_repl import Session\n"
        "with Session('local', plan_id='P-1', log_dir=sys.argv[2]) as session:\n"
        "    session.artifact(b'warm up')\n"
        "    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "    assert session.artifact(sys.argv[1])['bytes'] == 100 << 20\n"
        "    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)"
    )
    big = tmp_path / "big.bin"
    with big.open("wb") as file:
        file.truncate(100 << 20)
    grown_mb = subprocess.run(
        [sys.executable, "-c", code, str(big), str(tmp_path / "root")],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert int(grown_mb) < 50


# What didn't fit a line, and reading all of it.

PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(256)) * 6000
TEXT = "zeile mit ä, € und 😀\n" * 60_000
TASK = TaskIds(plan_id="P-1", task_id="T-7", task_name="login")


def image_outcome() -> ExecutionOutcome:
    return ExecutionOutcome(
        status="ok",
        route="local",
        isolation="none",
        elapsed_ms=0,
        result={"text/plain": "<Figure>", "image/png": base64.encodebytes(PNG).decode()},
        stdout=TEXT,
    )


def request(session_id: str) -> ExecutionRequest:
    return ExecutionRequest(
        code="plot()", session_id=session_id, seq=1, task=TASK, timestamp="2026-01-01T00:00:00.000Z"
    )


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """A log whose one line has two artifacts: a text and an image."""
    session_id = new_session_id()
    one = SessionLog(root=str(tmp_path / "root"), task=TASK, session_id=session_id)
    one.begin(request(session_id))
    one.finish(request(session_id), image_outcome())
    one.close()
    return Path(one.path)


def test_an_image_that_is_large_is_an_artifact_and_one_that_is_small_is_not() -> None:
    encoded = encode(request(new_session_id()), image_outcome())
    assert {artifact.field for artifact in encoded.outcome.artifacts} == {"stdout", "result.image/png"}
    assert b"image/png;base64" in encoded.body
    small = ExecutionOutcome(
        status="ok", route="local", isolation="none", elapsed_ms=0, result={"image/png": "iVBORw0KGgo="}
    )
    assert encode(request(new_session_id()), small).outcome.artifacts == ()


def show(log: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "task_logger", "show", str(log), *arguments],
        capture_output=True,
        check=False,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        timeout=60,
    )


def test_show_writes_the_bytes_of_an_artifact(log: Path) -> None:
    assert show(log, "1", "--artifact", "stdout").stdout == TEXT.encode()
    assert show(log, "1", "--artifact", "result.image/png").stdout == PNG
    line = json.loads(log.read_bytes())
    for artifact in line["artifacts"]:
        expected = PNG if "png" in artifact["mime"] else TEXT.encode()
        assert show(log, "1", "--artifact", artifact["sha256"][:8]).stdout == expected
    text = next(one for one in line["artifacts"] if one["field"] == "stdout")
    assert show(log, "--artifact", text["sha256"]).stdout == TEXT.encode()
    assert show(log, "--artifact", text["sha256"][:8]).stdout == TEXT.encode()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("1", "--artifact"), 1, "name one: "),
        (("1", "--artifact", "stderr"), 1, "'stderr' names no single one"),
        (("1", "--artifact", "result.image/png", "--range", "0:9"), 1, "--range: is for text"),
        (("1", "--range", "0:9"), 2, "--range is for --artifact"),
        (("1", "--artifact", "stdout", "--range", "9"), 2, "FROM:TO"),
        (("9", "--artifact", "stdout"), 1, "no line 9"),
        (("--artifact", "0" * 64), 1, "isn't there"),
        (("--artifact", "012345"), 1, "isn't there"),
    ],
)
def test_what_can_not_be_shown_is_one_line_on_stderr(
    log: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended = show(log, *arguments)
    assert (ended.returncode, ended.stdout) == (code, b"")
    assert says in ended.stderr.decode()
    assert ended.stderr.count(b"\n") == 1


def test_ranges_that_meet_fit_together_and_split_no_character(log: Path) -> None:
    pieces = [
        show(log, "1", "--artifact", "stdout", "--range", span).stdout for span in (":10", "10:11", "11:4001")
    ]
    assert all(piece.decode() for piece in pieces[:1])
    assert b"".join(pieces) == TEXT.encode()[: len(b"".join(pieces))]
    assert (
        show(log, "1", "--artifact", "stdout", "--range", f"{len(TEXT.encode()) - 5}:").stdout.decode()
        == "😀\n"
    )
    assert show(log, "1", "--artifact", "stdout", "--range", "999999999:").stdout == b""


@given(text=st.text(max_size=40), cuts=st.lists(st.integers(0, 170), max_size=5))
def test_any_ranges_that_meet_are_the_whole_text(text: str, cuts: list[int]) -> None:
    import io

    file = io.BytesIO(text.encode("utf-8", "surrogatepass"))
    bounds = [0, *sorted(cuts), None]
    pieces = [b"".join(read_range(file, start or 0, end)) for start, end in pairwise(bounds)]
    assert b"".join(pieces) == file.getvalue()
    for piece in pieces:
        piece.decode("utf-8", "surrogatepass")


@given(data=st.binary(max_size=60), cut=st.integers(0, 60))
def test_ranges_of_what_is_no_text_meet_too(data: bytes, cut: int) -> None:
    import io

    file = io.BytesIO(data)
    assert b"".join(read_range(file, 0, cut)) + b"".join(read_range(file, cut)) == data


def on_a_terminal(log: Path, *arguments: str) -> tuple[str, int]:
    controller, terminal = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-m", "task_logger", "show", str(log), *arguments],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
    )
    os.close(terminal)
    got = b""
    try:
        while piece := os.read(controller, 65536):
            got += piece
    except OSError:  # EIO: the other end is closed
        pass
    os.close(controller)
    return got.decode(), process.wait(timeout=30)


def test_a_terminal_gets_text_that_can_not_command_it_and_no_image(session: Session, tmp_path: Path) -> None:
    session.execute_code("print('\\x1b[31mred' + 'x' * 1_100_000)")
    log = Path(session.log_path)
    got, code = on_a_terminal(log, "1", "--artifact", "stdout", "--range", "0:8")
    assert (got, code) == ("\\x1b[31mred\r\n", 0)
    image = str(session.artifact(PNG, "image/png")["sha256"])
    got, code = on_a_terminal(log, "--artifact", image)
    assert code == 1
    assert "> FILE" in got
    assert "PNG" not in got
