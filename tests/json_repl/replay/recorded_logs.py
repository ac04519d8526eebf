"""Recordings to replay, and what tests plant in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from json_repl.replay import LiveReplay, LiveSettings, Report, load_recording
from json_repl.session import Session
from task_logger.codec import FIRST_PREV, seal


def record(codes: Iterable[str], **settings: Any) -> Path:
    """Record these executions in one session; returns the path of its log."""
    with Session("worker", task_id="T-1", **settings) as session:
        for code in codes:
            session.execute_code(code)
        return Path(session.log_path)


def replayed(path: Path, **settings: Any) -> Report:
    """Replay a log live, all of it, in processes: sandboxes have a test of their own."""
    settings = {"isolation": "process", "keep_going": True, **settings}
    return LiveReplay(load_recording(str(path)), LiveSettings(**settings)).run()


def verdicts(report: Report) -> list[str]:
    return [step.verdict for step in report.steps]


def told(report: Report) -> str:
    """What to show where a test fails."""
    return "\n".join(
        f"{step.number} {step.verdict} {step.code!r} {step.reason} {step.differences}"
        for step in report.steps
        if step.verdict != "MATCH"
    )


Change = Callable[[list[dict[str, Any]]], list[dict[str, Any]]]


def change(path: Path, to: Path, change_lines: Change, *, is_chained: bool = True) -> Path:
    """Write a changed copy of a log, chained anew, or with the hashes as they were, which are wrong then."""
    lines = change_lines([json.loads(line) for line in path.read_bytes().splitlines()])
    prev = FIRST_PREV
    to.parent.mkdir(parents=True, exist_ok=True)
    with to.open("wb") as file:
        for n, line in enumerate(lines, start=1):
            if not is_chained:
                file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
                continue
            body = {name: value for name, value in line.items() if name not in ("n", "prev", "hash")}
            data = json.dumps(body, ensure_ascii=False, separators=(",", ":")).encode()[:-1]
            sealed, prev = seal(data, n, prev)
            file.write(sealed)
    return to
