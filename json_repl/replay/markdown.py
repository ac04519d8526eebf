"""A report in Markdown: pure; a recording's text stands in fences that it can't close."""

from __future__ import annotations

import re
from collections.abc import Iterator

from json_repl.replay.report import Report, StepReport
from json_repl.replay.text import difference_lines, summary_lines
from task_logger.display import one_line, printable

_CODE_CHARACTERS = 60


def as_markdown(report: Report) -> str:
    """Render the totals, a table of all steps, and each difference."""
    lines = [f"# Replay of {_cell(report.path)}", "", *_fenced(summary_lines(report)), ""]
    lines += ["| line | verdict | ms | recorded ms | code |", "|--:|---|--:|--:|---|"]
    lines += [_row(step) for step in report.steps]
    for step in report.steps:
        if step.differences:
            where = f"{report.path}:{step.number}"
            told = [line for each in step.differences for line in difference_lines(printable(where), each)]
            lines += ["", f"## {_cell(where)}", "", *_fenced(step.code.split("\n")), ""]
            lines += _fenced([*told, *(f"hint: {hint}" for hint in step.hints)])
    return "\n".join(lines) + "\n"


def _row(step: StepReport) -> str:
    verdict = f"{step.verdict}, random" if step.is_random else step.verdict
    reason = f": {_cell(step.reason)}" if step.reason else ""
    replayed = "" if step.replayed_ms is None else f"{step.replayed_ms:.1f}"
    code = one_line(step.code, _CODE_CHARACTERS)
    return f"| {step.number} | {verdict}{reason} | {replayed} | {step.recorded_ms:.1f} | {_cell(code)} |"


def _cell(text: str) -> str:
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", printable(text).replace("\n", " "))


def _fenced(lines: Iterator[str] | list[str]) -> list[str]:
    found = [printable(line) for line in lines]
    longest = max((len(run) for line in found for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [f"{fence}text", *found, fence]
