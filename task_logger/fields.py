"""Values <-> the fields of a line, as a dict.

request, outcome -> fields, in the order of a line
a program's own fields -> checked, completed -> fields, in the order of a line
fields that were checked -> ExecutionRecord
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson

from task_logger.errors import InvalidField
from task_logger.record import (
    Artifact,
    ExecutionError,
    ExecutionOutcome,
    ExecutionRecord,
    ExecutionRequest,
    LateOutput,
    LogHead,
    NamespaceChanges,
    TaskIds,
)
from task_logger.schema import CHAIN_FIELDS, REQUIRED, SCHEMA_VERSION, check_field

JSON_OPTIONS = orjson.OPT_PASSTHROUGH_DATACLASS | orjson.OPT_PASSTHROUGH_DATETIME
"""Dataclasses and dates are no JSON values: orjson is told to refuse them, like all others."""

_IN_RECORD = (
    frozenset(REQUIRED)
    | CHAIN_FIELDS
    | {"actor", "cpu_ms", "displays", "peak_rss_bytes", "lossy", "late_output", "parent", "rolled_back"}
    | {"snapshot"}
)


def fields_of(request: ExecutionRequest, outcome: ExecutionOutcome) -> dict[str, object]:
    """Return the fields of a line but its chain, in order, whatever their values are."""
    task, changes, error = request.task, outcome.changes, outcome.error
    fields: dict[str, object] = {
        "plan_id": task.plan_id,
        "task_id": task.task_id,
        "timestamp": request.timestamp,
        "elapsed_ms": outcome.elapsed_ms,
        "code": request.code,
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "success": outcome.status == "ok",
        "added_vars": changes.added_vars,
        "added_imports": changes.added_imports,
        "schema": SCHEMA_VERSION,
        "session_id": request.session_id,
        "seq": request.seq,
        "route": outcome.route,
        "task_name": task.task_name,
        "status": outcome.status,
        "result": outcome.result,
        "error": None if error is None else _error_fields(error),
        "changed_vars": changes.changed_vars,
        "removed_vars": changes.removed_vars,
        "variables": changes.variables,
        "artifacts": [artifact_fields(artifact) for artifact in outcome.artifacts]
        if outcome.artifacts
        else (),
        "tags": request.tags,
        "isolation": outcome.isolation,
        "diff_complete": changes.diff_complete,
        "snapshot": outcome.snapshot,
        "actor": request.actor,
    }
    if outcome.displays:
        fields["displays"] = outcome.displays
    if outcome.parent is not None:
        fields["parent"] = outcome.parent
    if outcome.rolled_back:
        fields["rolled_back"] = True
    if outcome.cpu_ms is not None:
        fields["cpu_ms"] = outcome.cpu_ms
    if outcome.peak_rss_bytes is not None:
        fields["peak_rss_bytes"] = outcome.peak_rss_bytes
    if outcome.lossy:
        fields["lossy"] = outcome.lossy
    if outcome.late_output:
        fields["late_output"] = [
            {"name": late.name, "text": late.text, "seq": late.seq} for late in outcome.late_output
        ]
    return fields


def _error_fields(error: ExecutionError) -> dict[str, object]:
    return {
        "type": error.type,
        "message": error.message,
        "traceback": error.traceback,
        "line": error.line,
        "signal": error.signal,
        "exit_code": error.exit_code,
    }


def artifact_fields(artifact: Artifact) -> dict[str, object]:
    """Return an artifact as a line names it."""
    return {
        "field": artifact.field,
        "sha256": artifact.sha256,
        "bytes": artifact.bytes,
        "mime": artifact.mime,
    }


def record_from_fields(fields: Mapping[str, Any], path: str) -> ExecutionRecord:
    """Make the record of a line's fields, which were checked; `path` is the log they stand in."""
    request = ExecutionRequest(
        code=fields["code"],
        session_id=fields["session_id"],
        seq=fields["seq"],
        task=TaskIds(plan_id=fields["plan_id"], task_id=fields["task_id"], task_name=fields["task_name"]),
        timestamp=fields["timestamp"],
        tags=fields["tags"],
        actor=fields.get("actor"),
    )
    return ExecutionRecord(
        request=request,
        outcome=outcome_from_fields(fields),
        head=LogHead(path=path, n=fields["n"], hash=fields["hash"]),
        extra={name: value for name, value in fields.items() if name not in _IN_RECORD},
    )


def outcome_from_fields(fields: Mapping[str, Any]) -> ExecutionOutcome:
    """Make the outcome of a line's fields."""
    error = fields["error"]
    return ExecutionOutcome(
        status=fields["status"],
        route=fields["route"],
        isolation=fields["isolation"],
        elapsed_ms=fields["elapsed_ms"],
        stdout=fields["stdout"],
        stderr=fields["stderr"],
        result=fields["result"],
        error=None if error is None else _error_from_fields(error),
        changes=NamespaceChanges(
            added_vars=tuple(fields["added_vars"]),
            changed_vars=tuple(fields["changed_vars"]),
            removed_vars=tuple(fields["removed_vars"]),
            added_imports=tuple(fields["added_imports"]),
            variables=fields["variables"],
            diff_complete=fields["diff_complete"],
        ),
        artifacts=tuple(
            Artifact(field=item["field"], sha256=item["sha256"], bytes=item["bytes"], mime=item["mime"])
            for item in fields["artifacts"]
        ),
        lossy=tuple(fields.get("lossy", ())),
        late_output=tuple(
            LateOutput(name=item.get("name", "stdout"), text=item.get("text", ""), seq=item.get("seq"))
            for item in fields.get("late_output", ())
        ),
        displays=tuple(fields.get("displays", ())),
        parent=fields.get("parent"),
        snapshot=fields.get("snapshot"),
        rolled_back=fields.get("rolled_back", False),
        cpu_ms=fields.get("cpu_ms"),
        peak_rss_bytes=fields.get("peak_rss_bytes"),
    )


def _error_from_fields(error: Mapping[str, Any]) -> ExecutionError:
    return ExecutionError(
        type=error["type"],
        message=error["message"],
        traceback=error["traceback"],
        line=error.get("line"),
        signal=error.get("signal"),
        exit_code=error.get("exit_code"),
    )


def completed_fields(
    given: Mapping[str, object], *, task: TaskIds, session_id: str, seq: int, timestamp: str
) -> dict[str, object]:
    """Return all fields of a line but its chain, in order, those of another program first choice.

    Unknown fields follow the known ones. Raises `InvalidField` for a field that the schema does not allow,
    or that only the log itself writes.
    """
    for name, value in given.items():
        if not isinstance(name, str):
            raise InvalidField(repr(name), "named by a text", value)
        if not name.isascii() and name.encode(errors="replace").decode() != name:
            raise InvalidField(ascii(name), "named by a text without lone surrogates", value)
        if name in CHAIN_FIELDS:
            raise InvalidField(name, "left out: the log itself writes it", value)
        check_field(name, value)
    ended_well = given.get("status", "ok") == "ok" and given.get("error") is None
    defaults: dict[str, object] = {
        **dict.fromkeys(REQUIRED),
        "plan_id": task.plan_id,
        "task_id": task.task_id,
        "timestamp": timestamp,
        "elapsed_ms": 0,
        **dict.fromkeys(("code", "stdout", "stderr"), ""),
        "success": ended_well,
        **{name: [] for name in ("added_vars", "added_imports", "changed_vars", "removed_vars", "artifacts")},
        "schema": SCHEMA_VERSION,
        "session_id": session_id,
        "seq": seq,
        "route": "local",
        "task_name": task.task_name,
        "status": "ok" if given.get("success", ended_well) else "error",
        "variables": {},
        "tags": {},
        "isolation": "none",
        "diff_complete": True,
    }
    fields = {**defaults, **given}
    if (fields["status"] == "ok") is not fields["success"]:
        raise InvalidField(
            "success", f"{not fields['success']} where status is {fields['status']}", given["success"]
        )
    return fields
