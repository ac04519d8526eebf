"""A report as text: pure, and nothing that a recording holds can command the terminal.

StepReport -> a line, as they come      its differences, once all is known      Report -> totals, how to go on
"""

from __future__ import annotations

from collections.abc import Iterator
from shlex import quote

from json_repl.replay.comparison import Difference
from json_repl.replay.report import Report, StepReport
from task_logger.display import one_line, printable

_CODE_CHARACTERS = 60
_EXCERPT_CHARACTERS = 100
_LINES_BEFORE, _LINES_AFTER = 1, 2
_MAX_FAULTS = 20


def step_lines(path: str, step: StepReport) -> Iterator[str]:
    """Yield what is said of one line of the recording as soon as it was replayed."""
    where = f"{printable(path)}:{step.number}"
    took = f"{step.recorded_ms:.1f} ms"
    if step.replayed_ms is not None:
        took = f"{step.replayed_ms:.1f} ms (recorded {step.recorded_ms:.1f})"
    verdict = f"{step.verdict}, random" if step.is_random else step.verdict
    yield f"{verdict:5}  {where}  {took}  {one_line(step.code, _CODE_CHARACTERS)}"
    if step.reason is not None:
        yield f"       {printable(step.reason)}"


def details_lines(path: str, step: StepReport) -> Iterator[str]:
    """Yield what differs in one line of the recording; nothing where nothing does."""
    where = f"{printable(path)}:{step.number}"
    for difference in step.differences:
        yield from difference_lines(where, difference)
    for hint in step.hints:
        yield f"       hint: {hint}"


def difference_lines(where: str, difference: Difference) -> Iterator[str]:
    """Yield a difference: where it is, both texts around it, a caret below the first place that differs."""
    place = f"line {difference.line}, column {difference.column}"
    yield f"       {where}: {difference.field} differs, {place}"
    for title, text in (("recorded", difference.recorded), ("replayed", difference.replayed)):
        yield from _excerpt(title, text, difference.line, difference.column)
    if difference.is_random:
        cause = difference.cause or "no cause is to be seen"
        yield f"       differs between two replays as well: {cause}"
    elif difference.is_random is False and difference.field not in ("seq", "code"):
        yield "       two replays agree: this has changed since it was recorded"


def excerpt(text: str, line: int, column: int) -> tuple[list[str], int, int]:
    """The lines around a place, cut to fit; the index of the one with the place, and its column there."""
    lines = text.split("\n")
    at = min(line - 1, len(lines) - 1)
    first = max(0, at - _LINES_BEFORE)
    start = max(0, column - 1 - _EXCERPT_CHARACTERS * 2 // 3)
    shown = []
    if len(lines) - 1 > at and not lines[-1]:
        del lines[-1]  # the text ends in a line end, not in an empty line
    for content in lines[first : at + 1 + _LINES_AFTER]:
        cut = content[start : start + _EXCERPT_CHARACTERS]
        cut = f"…{cut}" if start and content else cut
        shown.append(f"{cut}…" if len(content) > start + _EXCERPT_CHARACTERS else cut)
    return shown, at - first, column - 1 - start + bool(start)


def _excerpt(title: str, text: str, line: int, column: int) -> Iterator[str]:
    if not text:
        yield f"         {title} | (empty)"
        return
    shown, at, column_at = excerpt(text, line, column)
    for index, content in enumerate(shown):
        label = title if index == at else ""
        yield f"         {label:8} | {printable(content)}"
        if index == at:
            before = printable(content[:column_at])
            yield f"         {'':8} | {''.join(char if char == chr(9) else ' ' for char in before)}^"


def summary_lines(report: Report) -> Iterator[str]:
    """Yield the totals, what is wrong with the recording, and how to go on."""
    for fault in report.faults[:_MAX_FAULTS]:
        yield f"note: {printable(report.path)}:{fault.number}: {fault.kind}: {printable(fault.reason)}"
    if len(report.faults) > _MAX_FAULTS:
        yield f"note: {len(report.faults) - _MAX_FAULTS} more of these"
    for name, count in report.hidden.items():
        yield f"note: normalizer {printable(name)} hides {count} differing place{'s' * (count != 1)}"
    yield from left_out_lines(report)
    if report.prepared:
        yield f"note: {report.prepared} executions before were run again for their state, and not compared"
    if report.rebuilt:
        yield f"note: {report.rebuilt} executions were run once more, for a state that no copy was left of"
    counts = ", ".join(f"{count} {name}" for name, count in report.counts.items() if count)
    percent = report.match_percent
    share = "" if percent is None else f"; {_floored(percent)} % of what was compared matches"
    lost = sum(fault.kind in ("unreadable", "torn_tail") for fault in report.faults)
    unread = f"; {lost} line{'s' * (lost != 1)} can't be read" if lost else ""
    where = "" if report.isolation is None else f", isolation {report.isolation}"
    yield f"{report.mode}: {counts or 'nothing'}{share}{unread} ({report.took_s:.2f} s{where})"
    if report.stopped is not None:
        yield f"stopped: {report.stopped}"
    yield from advice(report)


def left_out_lines(report: Report) -> Iterator[str]:
    """Yield which fields were not compared, where, and why."""
    for name, why in (
        ("added_imports", "recorded on another route, where other modules were loaded"),
        ("changed_vars", "the search for what changed in place had run out of time"),
        ("traceback", "recorded by a kernel that words it in another way; error.type and message were"),
    ):
        count = sum(name in step.left_out for step in report.steps)
        if count:
            yield f"note: {name} not compared in {count} of the executions: {why}"


def _floored(percent: float) -> str:
    return f"{int(percent * 100) / 100:g}"  # 99.999 % are not 100


def advice(report: Report) -> Iterator[str]:
    """Yield how to go on."""
    if report.mode == "dry-run":
        if not report.has_differences:
            yield "nothing was run or compared; --live does that"
        return
    changed = next((step for step in report.steps if step.verdict == "DIFF" and not step.is_random), None)
    if changed is not None:
        n = changed.number
        path = quote(printable(report.path))  # it may be a stranger's, and is there to be copied to a shell
        yield f"go on: json-repl replay {path} --live --from {n} --until {n} --shell"
        yield "  looks around just before and just after; if the change is meant, record the session anew"
    if any(step.is_random for step in report.steps):
        yield "go on: hide what differs at random with --normalize NAME, or make it certain (a fixed seed)"
