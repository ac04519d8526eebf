"""Events beside the log: written from anywhere, whole and chained, and never in the way of the work."""

from __future__ import annotations

import asyncio
import json
import math
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from fcntl import LOCK_EX, flock
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import task_logger
from task_logger.alerts import Alert
from task_logger.cli import main
from task_logger.errors import KeyMissing, LogNotFound
from task_logger.event_log import _AFTER_LOCKED_S, EventLog
from task_logger.event_view import read_events
from task_logger.reader import Damage
from task_logger.record import TaskIds
from task_logger.task import check_settings
from tests.conftest import WaitUntil
from tests.ordinary_user import ordinary_user
from tests.task_logger.log_check import check_log

TASK = TaskIds(plan_id="P", task_id="T-1", task_name="name")


@pytest.fixture(autouse=True)
def _own_task(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("FLOW_PLAN_ID", "P")
    monkeypatch.setenv("FLOW_TASK_ID", "T-1")
    monkeypatch.setenv("FLOW_TASK_NAME", "name")
    yield
    for path in log_root.glob("*/events/*.jsonl"):
        if path.is_file():
            assert check_log(path).breaks == []


@pytest.fixture
def told() -> list[Alert]:
    return []


@pytest.fixture
def events(told: list[Alert], no_leaks: None) -> Iterator[EventLog]:
    log = EventLog(TASK, check_settings, on_alert=told.append)
    yield log
    log.close()


def path_of(log_root: Path, name: str = "1.name") -> Path:
    return log_root / "P" / "events" / f"{name}.events.jsonl"


def lines_of(log_root: Path, name: str = "1.name") -> list[dict[str, Any]]:
    """The events of a task, without what all of them have."""
    path = path_of(log_root, name)
    common = {"schema", "timestamp", "plan_id", "task_id", "task_name", "n", "prev", "hash"}
    found = (
        [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []
    )
    return [{name: value for name, value in line.items() if name not in common} for line in found]


def measured(name: str, value: object = None) -> dict[str, object]:
    return {"kind": "event", "name": name, "value": value}


# What is written


def test_an_event_is_one_chained_line_of_the_task_in_the_environment(log_root: Path) -> None:
    assert task_logger.event("tests.passed", 41, {"suite": "unit"}, correlation_id="run-1")
    assert task_logger.event("started")
    assert lines_of(log_root) == [
        {
            "kind": "event",
            "name": "tests.passed",
            "value": 41,
            "dimensions": {"suite": "unit"},
            "correlation_id": "run-1",
        },
        {"kind": "event", "name": "started"},
    ]
    checked = check_log(path_of(log_root))
    assert [line["n"] for line in checked.lines] == [1, 2]
    assert path_of(log_root).stat().st_mode & 0o777 == 0o600
    assert path_of(log_root).parent.stat().st_mode & 0o777 == 0o700


def test_ids_and_tags_come_from_task_context_with_nothing_passed_along(log_root: Path) -> None:
    def deep_inside() -> None:
        task_logger.alert("warning", "slow", source="tests")

    with task_logger.task_context(task_id="T-2", agent="coder"):
        with task_logger.task_context(step=4):
            deep_inside()
        task_logger.run_in_thread(task_logger.event, "from a thread").result()
        asyncio.run(_in_a_task())
    deep_inside()
    said = {"kind": "alert", "level": "warning", "source": "tests", "message": "slow"}
    assert lines_of(log_root, "2.name") == [
        {**said, "tags": {"agent": "coder", "step": 4}},
        {"kind": "event", "name": "from a thread", "tags": {"agent": "coder"}},
        {"kind": "event", "name": "from a task", "tags": {"agent": "coder"}},
    ]
    assert lines_of(log_root) == [said]


async def _in_a_task() -> None:
    async def write() -> None:
        task_logger.event("from a task")

    await asyncio.create_task(write())


def test_a_model_call_is_a_request_and_a_response_that_belong_together(log_root: Path) -> None:
    with task_logger.task_context(agent="coder"), task_logger.model_call("model-1") as call:
        call.input_tokens, call.output_tokens, call.cost_usd = 1200, 80, 0.0042
    with pytest.raises(TimeoutError), task_logger.model_call("model-1"):
        raise TimeoutError("the model did not answer")
    request, response, failed_request, failed = lines_of(log_root)
    assert request == {
        "kind": "llm_request",
        "model": "model-1",
        "correlation_id": call.correlation_id,
        "tags": {"agent": "coder"},
    }
    assert response.pop("latency_ms") >= 0
    assert response == {
        "kind": "llm_response",
        "model": "model-1",
        "input_tokens": 1200,
        "output_tokens": 80,
        "cost_usd": 0.0042,
        "correlation_id": call.correlation_id,
        "tags": {"agent": "coder"},
    }
    assert failed["error"] == "TimeoutError"
    assert failed["correlation_id"] == failed_request["correlation_id"] != call.correlation_id


def test_calls_that_overlap_are_told_apart(log_root: Path) -> None:
    first = task_logger.llm_request("a")
    second = task_logger.llm_request("b", correlation_id="mine")
    assert task_logger.llm_response("b", correlation_id=second, latency_ms=3)
    assert task_logger.llm_response("a", correlation_id=first, error="RateLimited")
    joined = [(line["kind"], line["model"], line["correlation_id"]) for line in lines_of(log_root)]
    assert joined == [
        ("llm_request", "a", first),
        ("llm_request", "b", "mine"),
        ("llm_response", "b", "mine"),
        ("llm_response", "a", first),
    ]


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()) | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters()), inner, max_size=4),
    max_leaves=10,
)


@given(
    value=_JSON, name=st.text(st.characters()), dimensions=st.dictionaries(st.text(st.characters()), _JSON)
)
@settings(max_examples=150)
def test_whatever_the_values_are_an_event_is_one_line_for_every_reader(
    value: object, name: str, dimensions: dict[str, object], log_root: Path, event_schema: Any
) -> None:
    path = path_of(log_root)
    before = path.stat().st_size if path.exists() else 0
    assert task_logger.event(name, value, dimensions)
    data = path.read_bytes()[before:]
    assert data.endswith(b"\n")
    (line,) = data.decode().splitlines()
    event_schema.validate(json.loads(line))


def test_what_json_has_no_form_for_is_never_silently_null(log_root: Path) -> None:
    deep: list[object] = []
    deep.append(deep)
    assert task_logger.event("nan", math.nan)
    assert task_logger.event("big", 2**70, {"inf": math.inf, "none": None})
    assert task_logger.event("itself", deep)
    nan, big, _ = lines_of(log_root)
    assert nan["value"] == {"type": "float", "text": "nan"}
    assert big["value"] == {"type": "int", "text": str(2**70)}
    assert big["dimensions"] == {"inf": {"type": "float", "text": "inf"}, "none": None}


# Never in the way of the work


def test_an_event_that_makes_no_sense_is_dropped_said_once_and_counted(
    events: EventLog, told: list[Alert], log_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert not events.alert("loud", "m", source="tests")
    assert not events.write({"kind": "event", "name": 7})
    assert not events.write({"kind": "event"})
    assert not events.write({"kind": "rumour", "name": "x"})
    assert not events.write(measured("large", "x" * (2 << 20)))
    assert not events.write({"kind": "llm_response", "model": "m", "correlation_id": "c", "latency_ms": -1})
    assert capfd.readouterr().err == (
        "task_logger: events are dropped, since one can't be written: "
        "field level must be one of info, warning, error, critical, not 'loud'\n"
    )
    assert events.write(measured("good", 1))
    assert lines_of(log_root) == [
        {"kind": "event", "name": "good", "value": 1},
        {
            "kind": "alert",
            "level": "warning",
            "source": "events",
            "message": "events are written again; 6 before the last were dropped",
        },
    ]
    assert [(alert.level, alert.source) for alert in told] == [
        ("error", "events"),
        ("loud", "tests"),
        ("warning", "events"),
    ]
    assert capfd.readouterr().err == ""


def _a_folder(path: Path) -> None:
    path.mkdir(parents=True)


def _a_link(path: Path) -> None:
    path.parent.mkdir(parents=True)
    path.symlink_to("/dev/null")


def _a_fifo(path: Path) -> None:
    path.parent.mkdir(parents=True)
    os.mkfifo(path)


def _no_folder(path: Path) -> None:
    path.parent.parent.mkdir(parents=True)
    path.parent.write_text("a file where the folder should be")


@pytest.mark.parametrize("obstacle", [_a_folder, _a_link, _a_fifo, _no_folder])
def test_where_no_file_can_be_had_events_are_dropped_until_one_can(
    obstacle: Callable[[Path], None],
    events: EventLog,
    told: list[Alert],
    log_root: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    path = path_of(log_root)
    obstacle(path)
    assert [events.write(measured("lost")) for _ in range(5)] == [False] * 5
    assert len(capfd.readouterr().err.splitlines()) == len(told) == 1
    assert "can't be a task log" in told[0].message
    if obstacle is _no_folder:
        path.parent.unlink()
    elif obstacle is _a_folder:
        path.rmdir()
    else:
        path.unlink()
    assert events.write(measured("kept"))
    assert lines_of(log_root)[1]["message"] == "events are written again; 5 before the last were dropped"


def test_an_ordinary_users_folder_that_cannot_be_written_stops_nothing() -> None:
    script = "import task_logger; print([task_logger.event('x') for _ in range(3)])"
    with ordinary_user() as user:
        (user.folder / "logs").mkdir(0o500)
        os.chown(user.folder / "logs", user.uid, -1)
        done = user.run("-c", script)
    assert done.stdout == "[False, False, False]\n"
    assert len(done.stderr.splitlines()) == 1
    assert "Permission denied" in done.stderr


@pytest.mark.parametrize("setting", [("TASK_LOG_FSYNC", "perhaps"), ("TASK_LOG_DIR", "/dev/null/x")])
def test_a_setting_that_makes_no_sense_raises_nothing(
    setting: tuple[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(*setting)
    assert not EventLog(TASK, check_settings).write(measured("lost"))
    assert setting[1].removesuffix("/x") in capfd.readouterr().err


def test_a_full_disk_leaves_one_fragment_and_the_next_event_names_it(
    small_disk: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = EventLog(TASK, lambda: check_settings(small_disk))
    filler = small_disk / "filler"
    assert log.write(measured("before"))
    try:
        with filler.open("wb") as file:
            while True:
                file.write(b"x" * 4096)
                file.flush()
    except OSError:
        pass
    assert [log.write(measured("lost", "y" * 20_000)) for _ in range(50)] == [False] * 50
    assert len(capfd.readouterr().err.splitlines()) == 1
    filler.unlink()
    assert log.write(measured("after"))
    log.close()
    checked = check_log(path_of(small_disk))
    assert checked.breaks == []
    assert len(checked.pieces) == 1
    assert len(checked.lines) == 3


def test_a_file_size_limit_drops_what_is_over_it_and_the_program_goes_on(log_root: Path) -> None:
    script = (
        "import resource, signal, sys, task_logger\n"
        "sys.dont_write_bytecode = True  # of which a part would be left for everybody\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "print([task_logger.event('x', 'y' * 500) for _ in range(12)].count(False) > 0, 'went on')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout == "True went on\n"
    assert len(done.stderr.splitlines()) == 1
    assert path_of(log_root).stat().st_size == 4096
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 4096


def test_another_process_that_holds_the_lock_costs_one_bounded_wait(
    events: EventLog, told: list[Alert], log_root: Path, wait_until: WaitUntil
) -> None:
    assert events.write(measured("before"))
    holder = os.open(path_of(log_root), os.O_RDWR)
    flock(holder, LOCK_EX)
    threads = len(os.listdir("/proc/self/task"))
    began = time.monotonic()
    dropped = [events.write(measured("lost")) for _ in range(200)].count(False)
    assert dropped == 200
    waits = (
        len(os.listdir("/proc/self/task")) - threads
    )  # each in vain leaves a thread, until it has the lock
    assert 1 <= waits <= 1 + (time.monotonic() - began) / _AFTER_LOCKED_S
    assert "has held its lock" in told[0].message
    os.close(holder)
    wait_until(lambda: len(os.listdir("/proc/self/task")) <= threads)


def test_a_file_that_was_put_away_is_begun_anew(events: EventLog, log_root: Path) -> None:
    assert events.write(measured("first"))
    path_of(log_root).rename(log_root / "put away")
    assert events.write(measured("second"))
    assert [line["name"] for line in lines_of(log_root)] == ["second"]


def test_a_signal_handler_in_the_middle_of_an_event_neither_blocks_nor_breaks_the_file(
    events: EventLog, log_root: Path
) -> None:
    handled: list[bool] = []

    def handler(_number: int, _frame: object) -> None:
        handled.append(events.write(measured("from the handler")))

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        written = [events.write(measured("from the work", number)) for number in range(3000)]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    written.append(events.write(measured("last")))  # whatever waited is written with it
    kept = [line for line in lines_of(log_root) if line["kind"] == "event"]
    assert len(kept) == len(written) + len(handled)
    assert all(written + handled)
    assert handled
    assert check_log(path_of(log_root)).pieces == []


_NOBODY_GIVES_UP_S = 60.0
"""A wait for the lock where nothing is to be dropped, though the machine stands still for seconds."""


def test_a_forked_child_writes_its_own_events_whatever_its_parents_threads_held(
    events: EventLog, log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("task_logger.event_log.LOCK_WAIT_S", _NOBODY_GIVES_UP_S)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            events.write(measured("parent"))

    threads = [threading.Thread(target=write) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    try:
        for _ in range(10):
            pid = os.fork()
            if pid == 0:
                signal.alarm(120)
                os._exit(0 if events.write(measured("child")) else 1)
            codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert codes == [0] * 10
    assert [line["name"] for line in lines_of(log_root)].count("child") == 10


def test_eight_processes_write_whole_lines_in_one_chain(log_root: Path) -> None:
    script = (
        "import task_logger, task_logger.event_log\n"
        f"task_logger.event_log.LOCK_WAIT_S = {_NOBODY_GIVES_UP_S}\n"
        "assert all(task_logger.event('x', n) for n in range(200))"
    )
    writers = [subprocess.Popen([sys.executable, "-c", script]) for _ in range(8)]
    assert [writer.wait(timeout=120) for writer in writers] == [0] * 8
    checked = check_log(path_of(log_root))
    assert (len(checked.lines), checked.pieces, checked.breaks) == (1600, [], [])


def test_what_a_killed_writer_left_is_named_by_the_next_event(events: EventLog, log_root: Path) -> None:
    assert events.write(measured("before"))
    with path_of(log_root).open("ab") as file:
        file.write(b'{"schema":1,"timest')
    assert events.write(measured("after"))
    last = json.loads(path_of(log_root).read_bytes().splitlines()[-1])
    assert [piece["bytes"] for piece in last["recovered"]] == [19]


def test_a_program_with_many_tasks_keeps_few_files_open(log_root: Path) -> None:
    script = (
        "import os, task_logger\n"
        "for number in range(1, 100):\n"
        "    with task_logger.task_context(task_id=f'T-{number}'):\n"
        "        assert task_logger.event('x')\n"
        "print(len(os.listdir('/proc/self/fd')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert int(done.stdout) < 30
    assert len(list(path_of(log_root).parent.iterdir())) == 99


# Reading


def test_events_are_read_and_verified_like_a_log(log_root: Path) -> None:
    for number in range(3):
        task_logger.event("x", number)
    path = path_of(log_root)
    values = [event["value"] for event in read_events(str(path)) if not isinstance(event, Damage)]
    assert values == [0, 1, 2]
    path.write_bytes(path.read_bytes().replace(b'"value":1', b'"value":9'))
    kinds = [event.kind for event in read_events(str(path)) if isinstance(event, Damage)]
    assert kinds == ["unreadable", "chain_break"]
    path.unlink()


def test_a_log_without_events_has_none(log_root: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with task_logger.TaskLogger("P", 1, "name") as log:
        log.write({"code": "x"})
    assert list(read_events(log.path)) == []
    assert main(["events", log.path]) == 0
    assert main(["events", "--json"]) == 0
    assert capfd.readouterr() == ("n\ttime\tkind\tname\tvalue\tmore\n", "")
    with pytest.raises(LogNotFound):
        list(read_events(str(log_root / "P" / "2.none.jsonl")))
    assert main(["events", str(log_root / "P" / "2.none.jsonl")]) == 1


def test_the_command_shows_events_as_a_table_and_as_they_are(
    log_root: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with task_logger.TaskLogger("P", 1, "name") as log:
        log.write({"code": "x"})
    task_logger.event("tests.passed", 41, {"suite": "unit"})
    task_logger.alert("error", "disk\nfull \x1b[31m", source="backup")
    task_logger.llm_response("model-1", correlation_id="c", latency_ms=12.5, cost_usd=0.01)
    assert main(["events"]) == 0
    rows = [line.split("\t") for line in capfd.readouterr().out.splitlines()]
    assert [row[:1] + row[2:] for row in rows[1:]] == [
        ["1", "event", "tests.passed", "41", "suite=unit"],
        ["2", "error", "backup", "disk…", ""],
        ["3", "llm_response", "model-1", "12.5", "cost_usd=0.01  correlation_id=c"],
    ]
    assert main(["events", log.path, "--json"]) == 0
    assert capfd.readouterr().out == path_of(log_root).read_text()


def test_a_sealed_task_has_sealed_events(
    log_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "seal.key"
    key.touch(0o600)
    key.write_bytes(os.urandom(32))
    monkeypatch.setenv("TASK_LOG_SEAL_KEY", f"file:{key}")
    log = EventLog(TASK, check_settings)
    assert log.write(measured("x"))
    log.close()
    assert "seal" in lines_of(log_root)[0]


def test_secrets_of_the_environment_are_kept_out_of_events(
    log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "kX9-vTq2-Lp84-zzRw"
    monkeypatch.setenv("BACKUP_PASSWORD", secret)
    monkeypatch.setenv("FLOW_TASK_ID", "T-3")
    assert task_logger.event(
        f"logged in with {secret}", {"url": f"https://me:{secret}@host/"}, {secret: [secret]}
    )
    assert task_logger.alert("error", f"refused: {secret}", source="backup")
    assert secret not in path_of(log_root, "3.name").read_text()
    assert [len(line) for line in lines_of(log_root, "3.name")] == [4, 4]


def test_an_encrypted_plan_has_encrypted_events_and_no_plain_one_gets_in(
    log_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("cryptography", reason="encryption needs the extra `crypto`")
    monkeypatch.setenv("TASK_LOG_KEY", "a passphrase")
    log = EventLog(TASK, check_settings)
    assert log.write(measured("hidden name", "hidden value"))
    log.close()
    data = path_of(log_root).read_bytes()
    assert data.startswith(b'{"schema":1,"enc":"A256GCM"')
    assert b"hidden" not in data
    (event,) = read_events(str(path_of(log_root)))
    assert not isinstance(event, Damage)
    assert (event["name"], event["value"], event["n"]) == ("hidden name", "hidden value", 1)
    monkeypatch.delenv("TASK_LOG_KEY")
    plain = EventLog(TASK, check_settings)
    assert not plain.write(measured("plain"))
    assert "TASK_LOG_KEY" in capfd.readouterr().err
    with pytest.raises(KeyMissing):
        list(read_events(str(path_of(log_root))))
    assert path_of(log_root).read_bytes() == data
