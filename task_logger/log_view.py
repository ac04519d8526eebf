"""What `task-log` prints of a log: one execution, all of them, their tree, the last of them.

path of a log -> reader -> rows, text or JSON on stdout; what is wrong on stderr
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import chain
from shutil import get_terminal_size

import click
import orjson

from task_logger import display
from task_logger.fitting import without_surrogates
from task_logger.reader import (
    Damage,
    LogLine,
    LogReader,
    pending_of,
    read_lines,
    record_of,
    start_of_last,
    started,
)
from task_logger.record import Artifact, ExecutionRecord, ExecutionRequest
from task_logger.summary import DamageTally

_POLL_S = 0.1
"""How often a log that is followed is looked at."""


def show_one(path: str, number: int, *, as_json: bool) -> int:
    """Print the execution of line `number` in full; returns the exit code."""
    last_n = 0
    for line in read_lines(path):
        if isinstance(line, Damage):
            continue
        last_n = line.link.n
        if last_n == number:
            if as_json:
                echo(json_text(line))
            else:
                for text in display.in_full(line.record()):
                    echo(text)
            return 0
    lines = f"its lines are 1 to {last_n}" if last_n else "it has none"
    raise click.ClickException(f"{path} has no line {number}: {lines}")


def show_artifact(
    path: str, number: int | None, wanted: str, byte_range: tuple[int, int | None] | None
) -> int:
    """Write an artifact of line `number`, without one any of the plan, to stdout; returns the exit code."""
    from task_logger.artifact_view import choose, stored, write_out

    folder = os.path.dirname(os.path.abspath(path))
    if number is None:
        sha256 = stored(folder, wanted)
        write_out(folder, Artifact(field="", sha256=sha256, bytes=0, mime="this artifact"), byte_range)
        return 0
    for line in read_lines(path):
        if isinstance(line, LogLine) and line.link.n == number:
            write_out(folder, choose(line.record().outcome.artifacts, wanted), byte_range)
            return 0
    raise click.ClickException(f"{path} has no line {number}")


def show_all(path: str, *, as_json: bool, since: str | None = None) -> int:
    """Print a table of all executions, of those since that timestamp; returns the exit code."""
    tally = DamageTally()

    def seen(reader: LogReader) -> Iterator[LogLine | Damage]:
        for line in reader.lines():
            tally.add(line)
            if since is None or isinstance(line, Damage) or started(line) >= since:
                yield line

    with LogReader(path) as reader:
        if as_json:
            for line in seen(reader):
                echo(json_text(line))
            for request, is_alive in pending_of(path):
                if since is None or request.timestamp >= since:
                    echo(_pending_json(request, is_alive))
        else:
            pending = (
                display.pending_row(request, is_alive)
                for request, is_alive in pending_of(path)
                if since is None or request.timestamp >= since
            )
            rows = (row.cells() for row in chain((_row(line, tally) for line in seen(reader)), pending))
            display.print_table(display.ROW_TITLES, rows, right=frozenset({0, 3}), flexible=frozenset({4, 5}))
    return report(tally)


def show_plain(path: str) -> int:
    """Print the lines of a log as plain JSON, and nothing else; returns the exit code."""
    tally = DamageTally()
    for line in read_lines(path):
        tally.add(line)
        if isinstance(line, LogLine):
            echo(json_text(line))
    return report(tally)


def show_tree(path: str, *, as_json: bool) -> int:
    """Print which execution started from the state of which; returns the exit code."""
    from task_logger.lineage import Step, lineage, step_of
    from task_logger.tree import ASCII, UNICODE, tree_lines, tree_nodes

    tally = DamageTally()

    def steps() -> Iterator[Step]:
        for line in read_lines(path):
            tally.add(line)
            seen = record_of(line) if isinstance(line, LogLine) else line
            if isinstance(seen, ExecutionRecord):
                yield step_of(seen)
            elif seen is not line:
                tally.add(seen)  # a whole line, which this version can't decode

    found = lineage(steps())
    pending = list(pending_of(path))
    if as_json:
        for node in tree_nodes(found):
            echo(dumps(node))
        for request, is_alive in pending:
            echo(_pending_json(request, is_alive))
    else:
        strokes = UNICODE if _can_write(UNICODE.to + "…") else ASCII
        for text in tree_lines(found, columns=get_terminal_size().columns, strokes=strokes):
            echo(text)
        for request, is_alive in pending:
            row = display.pending_row(request, is_alive)
            echo(f"{row.status}: execution {request.seq} of session {request.session_id}  {row.code}")
    return report(tally)


def _can_write(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def report(tally: DamageTally) -> int:
    """Say what is wrong on stderr; returns 1 where that is more than a writer's death explains."""
    for one in tally.damage:
        note = " (a later line names it)" if tally.is_named(one) else ""
        print(f"task-log: {display.damage_text(one)}{note}", file=sys.stderr)
    return 1 if tally.alarming() else 0


def _row(line: LogLine | Damage, tally: DamageTally) -> display.Row:
    seen = record_of(line) if isinstance(line, LogLine) else line
    if isinstance(seen, ExecutionRecord):
        return display.row(seen)
    if seen is not line:
        tally.add(seen)  # a whole line, which this version can't decode
    return display.damage_row(seen)


def _pending_json(request: ExecutionRequest, is_alive: bool) -> str:
    pending: dict[str, object] = {"running": is_alive, "session_id": request.session_id, "seq": request.seq}
    return dumps({"pending": {**pending, "timestamp": request.timestamp, "code": request.code}})


def show_last(path: str, count: int, *, as_json: bool, follow: bool) -> int:
    """Print the last executions, and with `follow` those to come until Ctrl-C; returns the exit code."""
    tally = DamageTally()
    with LogReader(path, start=start_of_last(path, count)) as reader, suppress(KeyboardInterrupt):
        _print_new(reader, tally, as_json=as_json, follow=follow)
        while follow:
            sys.stdout.flush()
            _wait_for_more(reader)
            _print_new(reader, tally, as_json=as_json, follow=True)
    return report(tally)


def _print_new(reader: LogReader, tally: DamageTally, *, as_json: bool, follow: bool) -> None:
    for line in reader.lines():
        if follow and isinstance(line, Damage) and line.kind == "torn_tail":
            continue  # it comes again, whole or torn, when more follows
        tally.add(line)
        echo(json_text(line) if as_json else "  ".join(_row(line, tally).cells()))


def _wait_for_more(reader: LogReader) -> None:
    while reader.size_bytes() == reader.seen_bytes:
        reader.check_path()
        time.sleep(_POLL_S)


def json_text(line: LogLine | Damage) -> str:
    """Render a line as it is, or damage as an object: a forged line that is no JSON as well."""
    if isinstance(line, LogLine):
        if _is_json(line.data):
            text = line.data.decode()
            return display.printable_json(text) if sys.stdout.isatty() else text
        damage: ExecutionRecord | Damage = record_of(line)
    else:
        damage = line
    assert isinstance(damage, Damage)  # what is no JSON has no record
    fields: dict[str, object] = {
        "damage": damage.kind,
        "path": damage.path,
        "at": damage.at,
        "bytes": damage.bytes,
        "reason": damage.reason,
    }
    return dumps(fields)


def _is_json(data: bytes) -> bool:
    try:
        orjson.loads(data)
    except ValueError:
        return False
    return True


def dumps(fields: dict[str, object]) -> str:
    """Render one object as a line of JSON."""
    return orjson.dumps(without_surrogates(fields)).decode()


def echo(text: str) -> None:
    """Print one line."""
    sys.stdout.write(f"{text}\n")
