"""A recording as a test reads it: whole or not at all.

task log    -> RecordedCall of each line, by session
its events  -> ModelResponse of each `llm_response`
anything damaged, encrypted without its key, or of a newer version -> RecordingRefused, which says where

The files are only read.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from json_repl.errors import RecordingRefused
from task_logger.errors import LogNotFound, TaskLogError
from task_logger.event_view import read_events
from task_logger.reader import Damage, read_records
from task_logger.record import ExecutionRecord

_TIME_CHARS = 13
_VERSION_AT = 14
"""In an id: a UUID of version 7 begins with the millisecond in which it was made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedCall:
    """One execution of a recording; `number` is that of its line, from 1."""

    number: int
    record: ExecutionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelResponse:
    """One `llm_response` of a recording's events; `number` is that of its line there, from 1."""

    number: int
    fields: Mapping[str, Any]


def read_calls(path: str) -> tuple[RecordedCall, ...]:
    """Return all executions of a recording; raises `LogNotFound` and `RecordingRefused`."""
    found = []
    try:
        for number, record in enumerate(read_records(path), start=1):
            if isinstance(record, Damage):
                raise RecordingRefused(path, f"can't be read: {record.reason}", line=number)
            found.append(RecordedCall(number=number, record=record))
    except LogNotFound:
        raise
    except TaskLogError as exc:
        raise RecordingRefused(path, f"can't be read: {exc}") from exc
    if not found:
        raise RecordingRefused(path, "holds no execution")
    return tuple(found)


def read_responses(path: str) -> tuple[ModelResponse, ...]:
    """Return the model's responses in the events beside a recording; raises `RecordingRefused`."""
    return tuple(_responses(path))


def _responses(path: str) -> Iterator[ModelResponse]:
    try:
        for number, fields in enumerate(read_events(path), start=1):
            if isinstance(fields, Damage):
                raise RecordingRefused(fields.path, f"can't be read: {fields.reason}", line=number)
            if fields["kind"] == "llm_response":
                yield ModelResponse(number=number, fields=fields)
    except TaskLogError as exc:
        raise RecordingRefused(path, f"has events that can't be read: {exc}") from exc


def by_session(calls: tuple[RecordedCall, ...]) -> list[tuple[RecordedCall, ...]]:
    """Split calls by session, in the order in which the sessions were opened."""
    sessions: dict[str, list[RecordedCall]] = {}
    for call in calls:
        sessions.setdefault(call.record.request.session_id, []).append(call)
    opened = list(sessions)  # by their first calls, where the ids don't tell
    if all(session_id[_VERSION_AT] == "7" for session_id in opened):
        opened.sort(key=lambda session_id: session_id[:_TIME_CHARS])
    return [tuple(sessions[session_id]) for session_id in opened]
