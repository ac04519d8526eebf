"""What came of running code in a namespace: everything of an outcome but its output."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from task_logger.record import ExecutionError, NamespaceChanges, Status


class CodeResult(NamedTuple):
    """What came of running code. (A tuple and no dataclass: one or two are made in every execution.)"""

    status: Status
    elapsed_ns: int
    result: Mapping[str, object] | None
    error: ExecutionError | None
    changes: NamespaceChanges
