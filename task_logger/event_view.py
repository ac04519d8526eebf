"""Reads the events of a task, and what `task-log events` prints of them.

path of a log, or of its events -> LogReader -> rows or JSON on stdout; what is wrong on stderr
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from task_logger import display
from task_logger.errors import LogNotFound
from task_logger.event_fields import EVENT_SCHEMA_VERSION
from task_logger.log_view import dumps, echo, json_text, report
from task_logger.reader import Damage, LogLine, read_lines
from task_logger.summary import DamageTally
from task_logger.task import events_beside

_TITLES = ("n", "time", "kind", "name", "value", "more")
_COMMON = frozenset(
    {
        "schema",
        "timestamp",
        "plan_id",
        "task_id",
        "task_name",
        "kind",
        "n",
        "prev",
        "hash",
        "seal",
        "recovered",
    }
)
_NAMES = {"event": "name", "alert": "source"}
_VALUES = {"event": "value", "alert": "message", "llm_response": "latency_ms"}


def read_events(path: str) -> Iterator[dict[str, Any] | Damage]:
    """Yield the events of the log at `path`, or of the event log there, and what is damaged between them.

    A log without events has none. Raises `LogNotFound` where there is no log either, `LogUnreadable`, and
    `KeyRefused` where an encrypted one needs another key.
    """
    for line in _lines(path):
        if isinstance(line, Damage):
            yield line
            continue
        yield _fields(line)


def show_events(path: str, *, as_json: bool) -> int:
    """Print a table of a task's events, or their lines as they are; returns the exit code."""
    tally = DamageTally()

    def seen() -> Iterator[LogLine | Damage]:
        for line in _lines(path):
            tally.add(line)
            yield line

    if as_json:
        for line in seen():
            echo(json_text(line))
    else:
        rows = (_row(line, tally) for line in seen())
        display.print_table(_TITLES, rows, right=frozenset({0}), flexible=frozenset({4, 5}))
    return report(tally)


def _lines(path: str) -> Iterator[LogLine | Damage]:
    events = path if path.endswith(".events.jsonl") else events_beside(path)
    try:
        yield from read_lines(events)
    except LogNotFound:
        if events == path or not os.path.exists(path):
            raise LogNotFound(path) from None


def _fields(line: LogLine) -> dict[str, Any] | Damage:
    try:
        fields: object = orjson.loads(line.data)
    except orjson.JSONDecodeError as exc:
        fields, reason = None, f"it is not JSON ({exc})"
    else:
        reason = "it is no event of this version"
    if isinstance(fields, dict) and fields.get("schema") == EVENT_SCHEMA_VERSION and "kind" in fields:
        return fields
    return Damage(kind="unsupported", path=line.path, at=line.at, bytes=len(line.data), reason=reason)


def _row(line: LogLine | Damage, tally: DamageTally) -> tuple[str, ...]:
    event = line if isinstance(line, Damage) else _fields(line)
    if isinstance(event, Damage):
        if event is not line:
            tally.add(event)  # a whole line, which this version can't read
        return ("", "", event.kind.replace("_", " "), "", f"at byte {event.at}", event.reason)
    kind = str(event["kind"])
    name, value = _NAMES.get(kind, "model"), _VALUES.get(kind, "")
    shown = str(event.get("level", "")) if kind == "alert" else kind
    rest = {
        key: item for key, item in event.items() if key not in _COMMON and key not in (name, value, "level")
    }
    cells = (
        str(event["n"]),
        str(event["timestamp"]),
        shown,
        str(event.get(name, "")),
        _text(event.get(value, "")),
        "  ".join(f"{key}={_text(item)}" for key, item in _flat(rest)),
    )
    return tuple(map(display.one_line, cells))


def _flat(fields: Mapping[str, object]) -> Iterator[tuple[str, object]]:
    for name, value in fields.items():
        if name in ("dimensions", "tags") and isinstance(value, dict):
            yield from value.items()
        else:
            yield name, value


def _text(value: object) -> str:
    return value if isinstance(value, str) else dumps({"": value})[4:-1]
