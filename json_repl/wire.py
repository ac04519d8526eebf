"""Records -> the plain dicts that callers get."""

from __future__ import annotations

from typing import Any

from task_logger.record import ExecutionRecord


def wire_form(record: ExecutionRecord, log_path: str) -> dict[str, Any]:
    """The wire form of a record; `debug_info.log` has no `n` and no `hash` where its line is not
    written yet."""
    outcome, changes, head, error = record.outcome, record.outcome.changes, record.head, record.outcome.error
    return {
        "success": outcome.status == "ok",
        "stdout": outcome.stdout,
        "stderr": outcome.stderr,
        "result": outcome.result,
        "error": None
        if error is None
        else {
            "type": error.type,
            "message": error.message,
            "traceback": error.traceback,
            "line": error.line,
            "signal": error.signal,
            "exit_code": error.exit_code,
        },
        "debug_info": {
            "execution": outcome.status,
            "session_id": record.request.session_id,
            "seq": record.request.seq,
            "route": outcome.route,
            "elapsed_ms": outcome.elapsed_ms,
            "added_vars": list(changes.added_vars),
            "changed_vars": list(changes.changed_vars),
            "removed_vars": list(changes.removed_vars),
            "added_imports": list(changes.added_imports),
            "log": {"path": log_path, "n": None, "hash": None}
            if head is None
            else {"path": head.path, "n": head.n, "hash": head.hash},
        },
        "artifacts": [
            {
                "field": artifact.field,
                "sha256": artifact.sha256,
                "bytes": artifact.bytes,
                "mime": artifact.mime,
            }
            for artifact in outcome.artifacts
        ],
        "notices": list(record.notices),
    }
