"""Recorded sessions replayed for real: which state each execution runs in, and what is told of it."""

from __future__ import annotations

import hashlib
import os
import random
import tempfile
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest

from json_repl.errors import InvalidRequest
from json_repl.replay import LiveReplay, LiveSettings, Normalizer, StepReport, load_recording
from json_repl.replay.normalizers import choose
from json_repl.session import Session
from repl_kernel.errors import SnapshotGone
from task_logger import TaskLogger
from tests.json_repl.replay.recorded_logs import change, record, replayed, told, verdicts

pytestmark = pytest.mark.usefixtures("no_leaks")


def record_a_timeline() -> Path:
    """Restarts, rewinds, a branch, a failed atomic execution, adopted and discarded candidates, a crash."""
    with Session("worker", task_id="T-1", snapshots="manual") as session:

        def keep(code: str) -> int:
            session.execute_code(code)
            return session.snapshot()["seq"]

        keep("import random; random.seed(4); x = [1]")
        keep("x.append(random.random()); x")
        session.execute_code("1 / 0")
        session.execute_code("y = 5\nx.clear()\nundefined_name", atomic=True)
        session.execute_code("'y' in globals(), len(x)")
        session.rewind(1)
        session.execute_code("x.append('after a rewind'); x, random.random()")
        session.rewind(2)
        keep("x, random.random()")
        with session.branch(7) as branch:
            branch.snapshot()
            branch.execute_code("x.append('in the branch'); x")
            session.execute_code("x.append('meanwhile'); x")
            branch.execute_code("len(x)")
            branch.rewind(0)
            branch.execute_code("x")
        session.rewind(7)
        session.speculate(["x.append('one'); x", "x.append('two'); x", "x.clear(); x"])
        session.adopt(1)
        session.execute_code("x")
        session.speculate(["a = 1", "b = 2"])
        session.discard()
        session.execute_code("x, 'a' in globals()")
        session.rewind(2)
        session.execute_code("import ctypes; ctypes.string_at(0)")
        session.execute_code("x")
        session.restart()
        session.execute_code("'x' in globals()")
        with_json = keep("import json\njson.dumps([1, 2])")
        session.rewind(0)
        session.execute_code("'json' in globals()")
        session.rewind(with_json)
        session.execute_code("'json' in globals()")
        return Path(session.log_path)


@pytest.mark.parametrize("isolation", ["process", "sandbox"])
def test_restarts_rewinds_branches_rollbacks_and_candidates_replay_to_match(
    isolation: str, log_root: Path
) -> None:
    path = record_a_timeline()
    report = replayed(path, isolation=isolation)
    assert report.counts == {"MATCH": 23, "DIFF": 0, "random": 0, "SKIP": 1}, told(report)
    assert report.match_percent == 100
    assert (report.faults, report.rebuilt) == ((), 0)
    (skipped,) = [step for step in report.steps if step.verdict == "SKIP"]
    assert skipped.status == "crashed"


def test_a_crash_that_was_asked_for_crashes_again(log_root: Path) -> None:
    with Session("worker", task_id="T-1", snapshots="manual") as session:
        session.execute_code("x = 1")
        session.snapshot()
        session.execute_code("x += 1")
        session.execute_code("import ctypes; ctypes.string_at(0)")
        session.execute_code("x")
        path = Path(session.log_path)
    report = replayed(path, include=("crashed",), normalizers=choose(["all"]))
    assert verdicts(report) == ["MATCH"] * 4, told(report)
    assert verdicts(replayed(path)) == ["MATCH", "MATCH", "SKIP", "MATCH"]


def test_a_state_that_cannot_be_copied_is_reached_by_running_what_led_there_again(log_root: Path) -> None:
    with Session("worker", task_id="T-1", snapshots="manual") as session:
        session.execute_code("x = 1")
        session.snapshot()
        session.execute_code("x += 1; x")
        session.rewind(1)
        session.execute_code("x += 10; x")
        path = Path(session.log_path)

    def with_a_thread(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[0]["code"] = (
            "import threading; e = threading.Event(); threading.Thread(target=e.wait, daemon=1)"
        )
        lines[0]["code"] += ".start(); x = 1"
        return lines

    report = replayed(change(path, log_root / "local" / "2.x.jsonl", with_a_thread))
    assert verdicts(report) == ["DIFF", "MATCH", "MATCH"], told(report)
    assert report.rebuilt > 0


def test_a_changed_result_is_told_by_line_field_and_column(log_root: Path) -> None:
    path = record(["x = 'same'", "print('first')\nprint('second line')", "x"])

    def mutate(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[1]["stdout"] = "first\nsecond Line\n"
        return lines

    report = replayed(change(path, log_root / "local" / "2.x.jsonl", mutate))
    assert verdicts(report) == ["MATCH", "DIFF", "MATCH"]
    (difference,) = report.steps[1].differences
    assert (difference.field, difference.line, difference.column) == ("stdout", 2, 8)
    assert (difference.recorded, difference.replayed) == ("first\nsecond Line\n", "first\nsecond line\n")
    assert difference.is_random is False


def test_it_stops_at_the_first_difference_unless_it_is_to_go_on(log_root: Path) -> None:
    path = record(["1", "2", "3"])

    def mutate(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[1]["result"]["text/plain"] = "two"
        return lines

    other = change(path, log_root / "local" / "2.x.jsonl", mutate)
    report = replayed(other, keep_going=False)
    assert verdicts(report) == ["MATCH", "DIFF"]
    assert report.stopped is not None
    assert verdicts(replayed(other)) == ["MATCH", "DIFF", "MATCH"]


@pytest.mark.parametrize(
    ("code", "cause"),
    [
        ("object()", "an address in a repr (--normalize addresses)"),
        ("import random; random.random()", "its code uses random"),
        ("{str(n) for n in range(50)}", "the order of a set"),
        ("import os; os.getpid() * 1000003", "its code uses the process id"),
        ("import tempfile; tempfile.mkdtemp()", "the name of a temporary file (--normalize temp-names)"),
        ("import time; time.perf_counter()", "its code uses the clock"),
        ("hash('text')", "its code uses hash()"),
    ],
)
def test_what_differs_at_random_is_told_apart_with_its_cause(
    code: str, cause: str, log_root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)  # with it, hashes are the same each time
    report = replayed(record(["1", code, "2"]))
    assert verdicts(report) == ["MATCH", "DIFF", "MATCH"]
    assert report.counts["random"] == 1
    (difference,) = report.steps[1].differences
    assert difference.is_random
    assert difference.cause is not None
    assert difference.cause.startswith(cause)


def test_a_cause_may_stand_in_an_earlier_line(log_root: Path) -> None:
    report = replayed(record(["import uuid\ndef new(): return uuid.uuid4()", "new()"]))
    assert report.steps[1].differences[0].cause == "the code of line 1 before it uses uuid"


def test_what_a_normalizer_hides_is_counted(log_root: Path) -> None:
    report = replayed(record(["print(object(), object())", "1"]), normalizers=choose(["addresses"]))
    assert verdicts(report) == ["MATCH", "MATCH"]
    assert report.hidden == {"addresses": 2}


def test_a_long_output_is_compared_by_all_of_its_bytes(log_root: Path) -> None:
    code = "print('\\n'.join(str(n) for n in range(300_000)))"
    path = record([code])
    assert verdicts(replayed(path)) == ["MATCH"]

    def mutate(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        (artifact,) = lines[0]["artifacts"]
        whole = (path.parent / "artifacts" / artifact["sha256"][:2] / artifact["sha256"]).read_bytes()
        changed = whole.replace(b"\n150000\n", b"\n15000X\n")
        artifact["sha256"] = hashlib.sha256(changed).hexdigest()
        kept = path.parent / "artifacts" / artifact["sha256"][:2] / artifact["sha256"]
        kept.parent.mkdir(exist_ok=True)
        kept.write_bytes(changed)
        return lines

    report = replayed(change(path, path.parent / "2.x.jsonl", mutate))
    (difference,) = report.steps[0].differences
    assert (difference.field, difference.line, difference.column) == ("stdout", 150_001, 6)


def test_a_hostile_recording_reaches_nothing_outside_the_sandbox(log_root: Path, tmp_path: Path) -> None:
    victim = tmp_path / "precious.txt"
    victim.write_text("mine")
    with TaskLogger("P-1", 7, "hostile") as log:
        for code in (
            f"import os; os.remove({str(victim)!r})",
            f"import shutil; shutil.rmtree({str(tmp_path)!r}, ignore_errors=True)",
            f"open({str(victim)!r}, 'w').write('yours')",
            "import socket; socket.create_connection(('127.0.0.1', 9), 1)",
        ):
            log.write({"code": code, "actor": "somebody"})
    (path,) = log_root.glob("*/*.jsonl")
    before = path.read_bytes()
    report = LiveReplay(load_recording(str(path)), LiveSettings(keep_going=True)).run()
    assert victim.read_text() == "mine"
    assert path.read_bytes() == before
    assert report.isolation == "sandbox"
    assert verdicts(report)[0] == "DIFF"
    assert any("--isolation process" in hint for step in report.steps for hint in step.hints)


def test_an_interrupted_replay_tells_where_to_go_on_and_what_it_ran_again(log_root: Path) -> None:
    path = record(["x = [1]", "x.append(2); x", "y = len(x); y", "x, y"])
    replay = LiveReplay(load_recording(str(path)), LiveSettings(isolation="process"))

    def interrupt(step: StepReport) -> None:
        if step.number == 2:
            raise KeyboardInterrupt

    report = replay.run(interrupt)
    assert report.was_interrupted
    assert [step.number for step in report.steps] == [1, 2]
    assert report.stopped == "interrupted; --from 3 goes on"
    rest = replayed(path, first_line=3)
    assert [(step.number, step.verdict) for step in rest.steps] == [(3, "MATCH"), (4, "MATCH")]
    assert rest.prepared == 2  # what is run again for its state is told


def test_only_what_a_state_needs_is_run_before_the_first_line(log_root: Path) -> None:
    with Session("worker", task_id="T-1", snapshots="manual") as session:
        session.execute_code("x = 1")
        session.snapshot()
        for _ in range(5):
            session.execute_code("x += 1; x")
        session.rewind(1)
        session.execute_code("x")
        path = Path(session.log_path)
    report = replayed(path, first_line=7)
    assert verdicts(report) == ["MATCH"]
    assert report.prepared == 1


def test_bounds_end_a_replay_and_say_where_to_go_on(log_root: Path) -> None:
    path = record(["1", "2", "import time; time.sleep(0.1)", "4"])
    report = replayed(path, max_executions=2)
    assert verdicts(report) == ["MATCH", "MATCH"]
    assert report.stopped == "--max-executions 2 reached; --from 3 goes on"

    def sleep_long(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[2]["code"] = "import time; time.sleep(600)"
        return lines

    slow = change(path, log_root / "local" / "2.x.jsonl", sleep_long)
    for seconds in (1, 4, 16, 64):  # as many as this machine needs for the two lines before
        report = replayed(slow, max_seconds=seconds)
        if len(report.steps) == 2:
            break
    assert verdicts(report) == ["MATCH", "MATCH"]
    assert report.stopped == f"--max-seconds {seconds} have passed in line 3"


def test_code_that_asked_for_input_is_skipped(log_root: Path) -> None:
    with Session("worker", task_id="T-1") as session:
        session.execute_code("input('name? ')", on_input=lambda prompt, is_password: "Ada")
        path = Path(session.log_path)
    report = replayed(path)
    assert verdicts(report) == ["SKIP"]
    assert "asks for input" in (report.steps[0].reason or "")


def test_what_never_ran_and_what_nobody_saw_end_is_skipped(log_root: Path) -> None:
    with Session("worker", task_id="T-1", snapshots="off") as session:
        session.execute_code("1", atomic=True)
        session.execute_code("while True: pass", time_limit_s=0.1)
        session.execute_code("2")
        path = Path(session.log_path)
    report = replayed(path)
    assert verdicts(report) == ["SKIP", "SKIP", "MATCH"], told(report)
    assert replayed(path, include=("timeout",)).counts["MATCH"] == 2

    def reword(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
        lines[1]["error"]["message"] = "stopped at its time limit of 1.2.3 s"
        return lines

    worded = change(path, log_root / "local" / "2.x.jsonl", reword)
    assert verdicts(replayed(worded, include=("timeout",))) == ["SKIP", "DIFF", "MATCH"]


def test_a_replay_writes_no_log_and_leaves_no_folder(log_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import os; os.getcwd() != '/', open('made.txt', 'w').write('x'), os.listdir()"
    path = record([code, "open('made.txt').read()"], isolation="sandbox")
    before = {each: each.stat().st_mtime_ns for each in log_root.rglob("*")}
    with tempfile.TemporaryDirectory(dir="/tmp") as temporary:  # short: sockets are made in there
        monkeypatch.setattr("tempfile.tempdir", temporary)
        report = replayed(path, isolation="sandbox")
        assert os.listdir(temporary) == []
    assert verdicts(report) == ["MATCH", "MATCH"], told(report)
    assert {each: each.stat().st_mtime_ns for each in log_root.rglob("*")} == before


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_random_timelines_replay_to_match(seed: int, log_root: Path) -> None:
    report = replayed(record_at_random(seed))
    assert not report.has_differences, told(report)
    assert report.faults == ()
    assert all(step.status == "crashed" for step in report.steps if step.verdict == "SKIP"), told(report)


def record_at_random(seed: int) -> Path:
    """A session and its branches, which do whatever a timeline can."""
    chance = random.Random(seed)
    with Session("worker", task_id="T-1", snapshots="manual") as root, ExitStack() as stack:
        root.execute_code("import random; dice = random.Random(1); x = []")
        sessions: list[tuple[Session, list[int]]] = [(root, [])]
        for number in range(chance.randint(15, 30)):
            session, kept = chance.choice(sessions)
            kind = chance.choice(
                ["run"] * 6 + ["keep", "rewind", "rewind", "atomic", "speculate", "branch", "crash", "empty"]
            )
            look = "globals().get('x'), 'dice' in globals() and dice.random()"
            if kind == "run":
                session.execute_code(f"x = globals().get('x', []) + [{number}]\n{look}")
            elif kind == "keep":
                kept.append(session.snapshot()["seq"])
            elif kind == "rewind" and kept:
                with suppress(SnapshotGone):
                    session.rewind(chance.choice(kept))
                session.execute_code(look)
            elif kind == "atomic":
                session.execute_code(f"x = {number}\n{chance.choice(['1 / 0', '2'])}", atomic=True)
            elif kind == "speculate":
                session.speculate([f"x = [{number}, {each}]; {look}" for each in range(3)])
                if chance.random() < 0.5:
                    session.adopt(1)
            elif kind == "branch" and kept and len(sessions) < 4:
                with suppress(SnapshotGone):
                    branch = stack.enter_context(session.branch(chance.choice(kept)))
                    sessions.append((branch, [branch.snapshot()["seq"]]))
                    branch.execute_code(look)
            elif kind in ("crash", "empty") and session is root:
                if kind == "crash":
                    session.execute_code("import os; os._exit(3)")
                else:
                    session.rewind(0)
                session.execute_code(look)
        return Path(root.log_path)


def test_the_api_takes_a_normalizer_of_ones_own(log_root: Path) -> None:
    import re

    mine = Normalizer(name="mine", pattern=re.compile(r"\d+"), stands_for="N", hides="numbers")
    report = replayed(record(["import os; print('pid', os.getpid() + 10**9)"]), normalizers=(mine,))
    assert verdicts(report) == ["MATCH"]
    assert report.hidden == {"mine": 1}
    with pytest.raises(InvalidRequest, match="normalizers"):
        replayed(Path(report.path), normalizers=("times",))


@pytest.mark.parametrize("make", [lambda: record([f"x{n} = {n}; x{n}" for n in range(1000)])])
def test_a_thousand_deterministic_executions_match(make: Callable[[], Path], log_root: Path) -> None:
    report = replayed(make())
    assert report.counts["MATCH"] == 1000, told(report)
