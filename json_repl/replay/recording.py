"""A recording: the executions of a task log, and what is wrong with the file.

task log -> reader -> whole lines --------------------------------------> RecordedLine
                  +-> damage --> JSON of a line all the same (changed) --> Fault, RecordedLine
                             +-> anything else --------------------------> Fault

The file is only ever read. A line of another major version, or one that can't be decrypted, ends it with the
error that says so: half a recording would pass for a whole one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from json_repl.replay.errors import NothingToReplay
from task_logger.codec import decode
from task_logger.errors import BadLine, EncryptedLine, LogUnreadable
from task_logger.key_places import header_path
from task_logger.log_source import open_source
from task_logger.reader import Damage, LogLine, read_lines
from task_logger.record import ExecutionRecord
from task_logger.tail import MAX_LINE_BYTES


@dataclass(frozen=True, slots=True, kw_only=True)
class RecordedLine:
    """One execution of a recording; `number` is that of its line in the file, from 1."""

    number: int
    record: ExecutionRecord


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Something wrong with a recording, at line `number` of the file; it doesn't end a replay."""

    number: int
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """A recording in memory: `lines` as they stand in the file, and what is wrong with it."""

    path: str
    lines: tuple[RecordedLine, ...]
    faults: tuple[Fault, ...]

    @property
    def folder(self) -> str:
        """The plan's folder, which holds the artifacts."""
        return os.path.dirname(self.path) or "."


def load_recording(path: str | os.PathLike[str], session_id: str | None = None) -> Recording:
    """Read a recording whole; `session_id` (or a unique start of one) leaves only that session's lines.

    Lines of sessions that it branched from stay: their states are needed. Raises what `read_recording` does.
    """
    path = os.fspath(path)
    lines: list[RecordedLine] = []
    faults: list[Fault] = []
    for item in read_recording(path):
        (faults if isinstance(item, Fault) else lines).append(item)  # type: ignore[arg-type]  # each to its own
    if session_id is not None:
        wanted = chosen_session(path, lines, session_id)
        lines = [line for line in lines if line.record.request.session_id in _with_origins(lines, wanted)]
    return Recording(path=path, lines=tuple(lines), faults=tuple(faults))


def read_recording(path: str) -> Iterator[RecordedLine | Fault]:
    """Yield the executions of a log and what is wrong with it, in the order of the file.

    Raises `LogNotFound`, `LogUnreadable`, `EncryptedLine`, `UnsupportedSchema`, and `NothingToReplay` where
    not one execution is there.
    """
    number = count = 0
    last_fault = "it is empty"
    with open_source(path) as again:
        for item in read_lines(path):
            if isinstance(item, LogLine):
                number += 1
                try:
                    found: RecordedLine | Fault = RecordedLine(number=number, record=item.record())
                except BadLine as exc:
                    found = Fault(number=number, kind="unreadable", reason=exc.reason)
            elif item.kind == "chain_break":
                found = Fault(number=number + 1, kind="chain_break", reason=item.reason)
            else:
                number += 1
                found = Fault(number=number, kind=item.kind, reason=item.reason)
                record = _changed_record(item, again)
                if record is not None:
                    count += 1
                    reason = "its hash is not that of the line: it was changed after it was written"
                    if not item.end:  # a plain line that was put into an encrypted log has a right hash
                        reason = item.reason
                    yield Fault(number=number, kind="changed", reason=reason)
                    found = RecordedLine(number=number, record=record)
                    yield found
                    continue
            if isinstance(found, RecordedLine):
                count += 1
            else:
                last_fault = f"line {found.number}: {found.reason}"
            yield found
    if not count:
        raise NothingToReplay(path, last_fault)


def _changed_record(damage: Damage, log: IO[bytes]) -> ExecutionRecord | None:
    """The record of a piece of a log whose hash is wrong, where it is one all the same, else `None`."""
    if damage.kind == "unsupported":
        raise EncryptedLine(damage.path)
    if damage.bytes > MAX_LINE_BYTES:
        return None
    try:
        log.seek(damage.at)
        data = log.read(damage.bytes)
    except OSError as exc:
        raise LogUnreadable(
            f"{damage.path!r} can't be read: {exc.strerror or exc}", path=damage.path
        ) from exc
    try:
        return decode(data, damage.path)
    except BadLine:
        return None
    except EncryptedLine:
        if not os.path.lexists(header_path(damage.path)):
            raise
        return None  # its log is decrypted; this line was altered, so that no key opens it


def chosen_session(path: str, lines: list[RecordedLine], session_id: str) -> str:
    """The one session whose id begins so; raises `NothingToReplay` with those that there are."""
    known = list(dict.fromkeys(line.record.request.session_id for line in lines))
    found = [each for each in known if each.startswith(session_id)]
    if session_id in found:
        return session_id
    if len(found) == 1:
        return found[0]
    which = f"{len(found)} sessions begin with" if found else "it has no session"
    raise NothingToReplay(path, f"{which} {session_id}; its sessions are {', '.join(known[:20])}")


def _with_origins(lines: list[RecordedLine], session_id: str) -> set[str]:
    """A session, and those that it branched from."""
    wanted = {session_id}
    is_new = True
    while is_new:
        origins = {
            line.record.outcome.parent.rpartition(":")[0]
            for line in lines
            if line.record.outcome.parent is not None and line.record.request.session_id in wanted
        }
        is_new = not origins <= wanted
        wanted |= origins
    return wanted
