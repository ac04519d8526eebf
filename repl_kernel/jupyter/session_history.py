"""What a `history_request` asks for, out of the lines of a session; pure."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

Line = Mapping[str, Any]
"""A line of a task log."""


def newest_lines(lines: Sequence[Line], n: int | None) -> list[Line]:
    """The newest `n` executions, `None` for all."""
    found = _heard(lines)
    return found if n is None else found[-n:] if n > 0 else []


def lines_between(lines: Sequence[Line], session: int, start: int, stop: int | None) -> list[Line]:
    """The executions from `start` to before `stop`; 0 is this session, and no other is known."""
    if session != 0:
        return []
    return [line for line in _heard(lines) if line["seq"] >= start and (stop is None or line["seq"] < stop)]


def lines_like(lines: Sequence[Line], pattern: str, n: int | None, *, unique: bool) -> list[Line]:
    """The newest `n` executions whose code matches; with `unique` of the same code the newest one."""
    found = [line for line in lines if fnmatch.fnmatchcase(line["code"], pattern)]
    if unique:
        found = list({line["code"]: line for line in found}.values())
    return newest_lines(found, n)


def entry(line: Line, *, with_output: bool) -> tuple[int, int, Any]:
    """An execution as a `history_reply` has it: session, number, code, or code and text of the result."""
    if not with_output:
        return 0, line["seq"], line["code"]
    result = line["result"]
    return 0, line["seq"], (line["code"], None if result is None else result.get("text/plain"))


def _heard(lines: Sequence[Line]) -> list[Line]:
    """Those that weren't silent."""
    return [line for line in lines if not line["tags"].get("silent")]
