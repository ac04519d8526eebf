"""What a live replay may take: how many executions, how many seconds."""

from __future__ import annotations

import re
import time

from json_repl.errors import InvalidRequest
from task_logger.record import ExecutionRecord

_TIME_LIMIT = re.compile(r"time limit of (\d+(?:\.\d+)?(?:e[+-]?\d+)?) s")

_LEAST_S = 0.001


class OutOfBounds(Exception):
    """A bound that the caller has set is reached; the message says where to go on."""


class Bounds:
    """The bounds of one replay, from now on; `None` means none."""

    def __init__(self, max_executions: int | None, max_seconds: float | None) -> None:
        """Raises `InvalidRequest` for seconds that are no time."""
        if max_seconds is not None and not max_seconds > 0:  # nan is neither more nor less
            raise InvalidRequest("max_seconds", f"must be more than 0, not {max_seconds}")
        self._max_executions = max_executions
        self._max_seconds = max_seconds
        self._deadline = None if max_seconds is None else time.monotonic() + max_seconds
        self._count = 0

    def begin(self, number: int) -> None:
        """An execution is to run, for line `number` to be compared; raises `OutOfBounds` where it may not."""
        if self._max_executions is not None and self._count >= self._max_executions:
            raise OutOfBounds(f"--max-executions {self._max_executions} reached; --from {number} goes on")
        if self.is_late():
            raise OutOfBounds(f"--max-seconds {self._max_seconds:g} have passed; --from {number} goes on")
        self._count += 1

    def is_late(self) -> bool:
        """Whether the time is up."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def limit_s(self, record: ExecutionRecord) -> float | None:
        """The time limit of an execution: its own where it ran into one, and what is left of ours."""
        rest_s = None if self._deadline is None else max(_LEAST_S, self._deadline - time.monotonic())
        if record.outcome.status != "timeout":
            return rest_s
        said = _TIME_LIMIT.search(record.outcome.error.message if record.outcome.error else "")
        own_s = float(said[1]) if said else max(_LEAST_S, record.outcome.elapsed_ms / 1000)
        return own_s if rest_s is None else min(own_s, rest_s)

    def check_cut_off(self, record: ExecutionRecord, status: str, number: int) -> None:
        """Raise `OutOfBounds` where an execution was ended because our time was up."""
        if status == "timeout" and record.outcome.status != "timeout" and self.is_late():
            raise OutOfBounds(f"--max-seconds {self._max_seconds:g} have passed in line {number}")
