"""Records as people read them: pure text, in which nothing a program has printed can command the terminal.

record -> Row, of a table of executions
record -> the lines that show one execution in full
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Literal

from task_logger.reader import Damage
from task_logger.record import ExecutionOutcome, ExecutionRecord, ExecutionRequest

MAX_CELL_CHARS = 60
"""Longest text of a table's cell; the execution in full shows it all."""

_COMMANDS_TERMINALS = re.compile("[\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069\ufeff]")
"""Characters that JSON leaves as they are, and that control terminals or hide text on them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One execution in a table; `n` is the number of its line, empty where it has none yet."""

    n: str
    time: str
    status: str
    elapsed_ms: str
    code: str
    outcome: str

    def cells(self) -> tuple[str, ...]:
        """Return the texts of the row, in order."""
        return (self.n, self.time, self.status, self.elapsed_ms, self.code, self.outcome)


ROW_TITLES = ("n", "time", "status", "ms", "code", "outcome")


def printable(text: str) -> str:
    """Return the text with all but line feeds, tabs and printable characters as escapes."""
    if text.isprintable():
        return text
    return "".join(char if char in "\n\t" or char.isprintable() else _escape(char) for char in text)


def printable_json(line: str) -> str:
    r"""Return a line of JSON with the characters that control terminals as JSON escapes (`\u009b`)."""
    return _COMMANDS_TERMINALS.sub(lambda match: f"\\u{ord(match[0]):04x}", line)


def _escape(char: str) -> str:
    code = ord(char)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def one_line(text: str, max_chars: int = MAX_CELL_CHARS) -> str:
    """Return the first line that is not blank, cut to `max_chars`, with `…` where there is more."""
    text = text.strip()
    first, line_end, _ = text.partition("\n")
    short = printable(first[: max_chars + 1].replace("\t", " "))
    cut = len(short) > max_chars or bool(line_end)
    return short[: max_chars - 1] + "…" if cut else short


def row(record: ExecutionRecord) -> Row:
    """Return a record as a row of a table."""
    request, outcome = record.request, record.outcome
    return Row(
        n=str(record.head.n) if record.head else "",
        time=request.timestamp[:19].replace("T", " "),
        status=printable(outcome.status),
        elapsed_ms=_milliseconds(outcome.elapsed_ms),
        code=one_line(request.code),
        outcome=one_line(_what_came_of_it(outcome)),
    )


def damage_row(damage: Damage) -> Row:
    """Return a piece of damage as a row of a table."""
    return Row(
        n="",
        time="",
        status=damage.kind.replace("_", " "),
        elapsed_ms="",
        code=f"byte {damage.at}, {damage.bytes} bytes",
        outcome=one_line(damage.reason),
    )


def pending_row(request: ExecutionRequest, is_alive: bool) -> Row:
    """Return an execution that has no line yet as a row; `is_alive` says whether its session is."""
    return Row(
        n="",
        time=request.timestamp[:19].replace("T", " "),
        status="running" if is_alive else "unknown",
        elapsed_ms="",
        code=one_line(request.code),
        outcome="" if is_alive else "its session died; the next writer gives it its line",
    )


def _milliseconds(elapsed_ms: float) -> str:
    return f"{elapsed_ms:.2f}" if elapsed_ms < 10 else f"{elapsed_ms:.0f}"


def _what_came_of_it(outcome: ExecutionOutcome) -> str:
    if outcome.error is not None:
        return f"{outcome.error.type}: {outcome.error.message}"
    if outcome.result is not None:
        return str(outcome.result.get("text/plain", ", ".join(outcome.result)))
    return outcome.stdout.strip() or outcome.stderr.strip() or ", ".join(_changes(outcome))


def _changes(outcome: ExecutionOutcome) -> Iterator[str]:
    changes = outcome.changes
    for sign, names in (("+", changes.added_vars), ("~", changes.changed_vars), ("-", changes.removed_vars)):
        yield from (f"{sign}{name}" for name in names)
    yield from (f"import {name}" for name in changes.added_imports)


def in_full(record: ExecutionRecord) -> Iterator[str]:
    """Yield the lines that show all of a record: code, output, result, error, changes and the rest."""
    request, outcome, task = record.request, record.outcome, record.request.task
    number = f"line {record.head.n}, " if record.head else ""
    yield printable(f"{number}execution {request.seq} of session {request.session_id}")
    yield printable(f"plan {task.plan_id}, task {task.task_id} ({task.task_name})")
    yield printable(
        f"{request.timestamp}: {outcome.status} after {_milliseconds(outcome.elapsed_ms)} ms, "
        f"route {outcome.route}, isolation {outcome.isolation}"
        + (f", by {request.actor}" if request.actor else "")
    )
    yield from _section("code", request.code)
    yield from _section("stdout", outcome.stdout)
    yield from _section("stderr", outcome.stderr)
    for mime, part in (outcome.result or {}).items():
        yield from _section(f"result, {mime}", part if isinstance(part, str) else _json(part))
    if outcome.error is not None:
        yield from _section("error", _error_text(outcome))
    yield from _section("changes", "\n".join(_changes_in_full(outcome)))
    yield from _section("tags", "\n".join(f"{name}: {_json(value)}" for name, value in request.tags.items()))
    for late in outcome.late_output:
        origin = "an earlier execution" if late.seq is None else f"execution {late.seq}"
        yield from _section(f"late {late.name} of {origin}", late.text)
    yield from _section("not exact text", "\n".join(outcome.lossy))
    yield from _section(
        "artifacts",
        "\n".join(f"{one.field}: {one.bytes} bytes, {one.mime}, {one.sha256}" for one in outcome.artifacts),
    )
    yield from _section("more", "\n".join(f"{name}: {_json(value)}" for name, value in record.extra.items()))


def _section(title: str, text: str) -> Iterator[str]:
    if text:
        yield ""
        yield f"{printable(title)}:"
        # Only LF ends a line here: all other line ends are shown as escapes.
        yield from (f"    {printable(line)}" for line in text.removesuffix("\n").split("\n"))


def _error_text(outcome: ExecutionOutcome) -> str:
    error = outcome.error
    assert error is not None
    facts = (
        (error.line is not None and f"line {error.line}"),
        (error.signal is not None and f"signal {error.signal}"),
        (error.exit_code is not None and f"exit code {error.exit_code}"),
    )
    where = ", ".join(fact for fact in facts if fact)
    text = f"{error.type}: {error.message}" + (f" ({where})" if where else "")
    shown_above = error.traceback.strip() in outcome.stderr
    return text if shown_above else f"{text}\n{error.traceback}"


def _changes_in_full(outcome: ExecutionOutcome) -> Iterator[str]:
    changes = outcome.changes
    for title, names in (("added", changes.added_vars), ("changed", changes.changed_vars)):
        yield from (f"{title} {name}{_described(changes.variables.get(name))}" for name in names)
    yield from (f"removed {name}" for name in changes.removed_vars)
    if changes.added_imports:
        yield f"imported {', '.join(changes.added_imports)}"
    if not changes.diff_complete:
        yield "(time ran out: more may have been changed in place)"


def _described(description: Mapping[str, object] | None) -> str:
    if not description:
        return ""
    rest = ", ".join(f"{name} {value}" for name, value in description.items() if name != "type")
    return f": {description.get('type', '')}" + (f" ({rest})" if rest else "")


def _json(value: object) -> str:
    import orjson

    return orjson.dumps(value).decode()


def damage_text(damage: Damage) -> str:
    """Return one sentence about a piece of damage."""
    where = f"at byte {damage.at}" + (f", {damage.bytes} bytes" if damage.kind != "chain_break" else "")
    return printable(f"{damage.path}: {damage.kind.replace('_', ' ')} {where}: {damage.reason}")


def print_table(
    titles: Sequence[str], rows: Iterable[Sequence[str]], *, right: frozenset[int], flexible: frozenset[int]
) -> None:
    """Print a table: with colour and lines on a terminal, as tab-separated text elsewhere.

    `right` are the numbers of the columns aligned at their right, `flexible` of those that may be cut.
    """
    import sys

    if sys.stdout is None or not sys.stdout.isatty():
        for cells in chain([titles], rows):
            print("\t".join(cell.replace("\t", " ") for cell in cells))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    listed = list(rows)
    for number, title in enumerate(titles):
        width = max(len(cells[number]) for cells in (titles, *listed))
        justify: Literal["left", "right"] = "right" if number in right else "left"
        min_width = None if number in flexible else width
        # Only columns that may wrap are made narrower; that none does is up to the texts in them.
        table.add_column(title, justify=justify, no_wrap=number not in flexible, min_width=min_width)
    for cells in listed:
        styled = (Text(cell, _STYLES.get(cell, ""), no_wrap=True, overflow="ellipsis") for cell in cells)
        table.add_row(*styled)
    Console().print(table)


_STYLES: Mapping[str, str] = {
    "ok": "green",
    **dict.fromkeys(("error", "crashed", "unreadable", "chain break", "unsupported"), "red"),
    **dict.fromkeys(("timeout", "interrupted", "unknown", "running", "torn tail"), "yellow"),
}
"""Colours of cells with exactly these texts: the status of an execution, or what is wrong with a piece."""
