"""What a recording shows without running it, line by line.

task log -> whole line, right hash, follows the line before? -> a schema we read? -> compiles? -> CheckedLine
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from json_repl.replay.compiling import compile_error
from task_logger.reader import Damage, read_records
from task_logger.record import ExecutionRecord

_WITHOUT_END = ("crashed", "timeout", "interrupted", "unknown")
_IPYTHON = re.compile(r"^\s*[%!?]|=\s*[%!]|\?\s*$", re.MULTILINE)
"""What of a cell is IPython's and no Python."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckedLine:
    """A line of a recording, `number` from 1: what is wrong with it, and why it couldn't be replayed."""

    number: int
    problems: tuple[str, ...] = ()
    skip_reason: str | None = None


def check_lines(path: str) -> Iterator[CheckedLine]:
    """Check a recording, without running any of it. Raises `TaskLogError`s where it can't be read at all."""
    number = 0
    problems: tuple[str, ...] = ()
    flags: dict[str, int] = {}
    for record in read_records(path):
        if isinstance(record, Damage):
            problems += (f"{record.kind}: {record.reason}",)
            if record.kind == "chain_break":  # it is about the line that comes now
                continue
        number += 1
        skip_reason = None
        if isinstance(record, ExecutionRecord):
            found = _why_it_is_no_python(record, flags)
            if found is not None and _may_be_ipython(record):
                skip_reason = "it may hold IPython's syntax, which only running it can tell"
            elif found is not None:
                problems += (found,)
            if record.outcome.status in _WITHOUT_END:
                skip_reason = f"its execution ended as {record.outcome.status}, which isn't replayed"
        yield CheckedLine(number=number, problems=problems, skip_reason=skip_reason)
        problems = ()


def _may_be_ipython(record: ExecutionRecord) -> bool:
    return record.outcome.route == "jupyter" or _IPYTHON.search(record.request.code) is not None


def _why_it_is_no_python(record: ExecutionRecord, flags: dict[str, int]) -> str | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the recorded code
        error = compile_error(record, flags)
    if error is None:
        return None
    line, text = getattr(error, "lineno", None) or 1, getattr(error, "msg", None) or error
    return f"its code was run, but doesn't compile: line {line}: {type(error).__name__}: {text}"
