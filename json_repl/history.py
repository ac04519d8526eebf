"""The lines of one session in a task log, as plain dicts."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import orjson

from task_logger.errors import LogNotFound
from task_logger.reader import LogLine, read_lines

if TYPE_CHECKING:
    from task_logger.keys import KeySource


def session_lines(
    log_path: str, session_id: str, last: int | None, key: KeySource | None = None
) -> list[dict[str, Any]]:
    """The session's lines, oldest first; `last` bounds them to the newest ones, `None` means all.

    `key` is that of an encrypted log.
    """
    from collections import deque

    mark = session_id.encode()
    found: deque[dict[str, Any]] = deque(maxlen=None if last is None else min(last, sys.maxsize))
    try:
        for line in read_lines(log_path, key):
            if isinstance(line, LogLine) and mark in line.data:
                try:
                    fields = orjson.loads(line.data)
                except ValueError:
                    continue  # forged: `task-log show` names it, as it does damage
                if fields.get("session_id") == session_id:
                    found.append(fields)
    except LogNotFound:
        return []  # nothing could be written yet
    return list(found)
