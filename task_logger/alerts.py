"""What subscribers of alerts get."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from task_logger.record import TaskIds


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something that people should know: `level` is `info`, `warning`, `error` or `critical`.

    `source` is the part that says so. `session_id` and `seq` are `None` where it is about no session, or no
    execution.
    """

    level: str
    source: str
    message: str
    timestamp: str
    task: TaskIds
    session_id: str | None = None
    seq: int | None = None


OnAlert = Callable[[Alert], object]
