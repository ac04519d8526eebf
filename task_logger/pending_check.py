"""What a plan's pending files say of its logs: what runs, what has no line yet, what must have been there.

pending files -> the last entry of each execution -> is its line in the log? -> findings; nothing is written
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from task_logger.abandoned import UNREADABLE_SUFFIX, content_at, look_at, pending_names
from task_logger.errors import BadLine, LogUnreadable, read_error
from task_logger.findings import Finding, FindingKind, Level
from task_logger.pending import Entry, entries_in
from task_logger.settling import has_line, session_id_of

if TYPE_CHECKING:
    from task_logger.encryption import Cipher

CipherOf = Callable[[str], "Cipher | None"]
"""Returns the cipher of the log at a path, `None` where it is plain, or there is no key."""


def check_pending(plan_folder: str, cipher_of: CipherOf, log_name: str | None = None) -> list[Finding]:
    """Look at the pending files of a plan, or of one of its logs; raises `TaskLogError` where it can't."""
    folder = f"{plan_folder}/pending"
    found: list[Finding] = []
    try:
        names = pending_names(folder)
        aside = [] if log_name else _put_aside(folder)
    except OSError as exc:
        raise read_error(folder, exc) from exc
    for name in names:
        path = f"{folder}/{name}"
        try:
            entries, is_alive = look_at(path)
            if not entries and not is_alive and not log_name and entries_in(content_at(path)[0]) is None:
                reason = "a session died, and what it left makes no sense; the next writer puts it aside"
                found.append(_finding("pending_unreadable", "unproven", path, reason))
        except FileNotFoundError:
            continue  # settled meanwhile
        except (OSError, BadLine) as exc:
            raise LogUnreadable(f"the pending file {path!r} can't be read: {exc}", path=path) from exc
        for entry in {entry.seq: entry for entry in entries}.values():
            if log_name in (None, entry.log_name):
                found += _check(plan_folder, path, entry, cipher_of, is_alive=is_alive)
    for name in aside:
        reason = "a session died, and what it left makes no sense; it was put aside"
        found.append(_finding("pending_unreadable", "unproven", f"{folder}/{name}", reason))
    return found


def _put_aside(folder: str) -> list[str]:
    try:
        return sorted(name for name in os.listdir(folder) if name.endswith(UNREADABLE_SUFFIX))
    except FileNotFoundError:
        return []


def _check(
    plan_folder: str, path: str, entry: Entry, cipher_of: CipherOf, *, is_alive: bool
) -> Iterator[Finding]:
    log = f"{plan_folder}/{entry.log_name}"
    try:
        status = os.stat(log)
    except FileNotFoundError:
        if entry.log_bytes and not os.path.lexists(f"{log}.zst"):
            reason = f"{entry.log_name} is gone, which had {entry.log_bytes} bytes at execution {entry.seq}"
            yield _finding("log_missing", "problem", path, reason)
        return
    if status.st_ino == entry.log_inode and status.st_size < entry.log_bytes:
        now = f"{entry.log_name} has {status.st_size} bytes"
        reason = f"{now}, and had {entry.log_bytes} at execution {entry.seq}"
        yield _finding("truncated", "problem", path, reason)
    yield from _check_line(path, log, entry, cipher_of, is_alive=is_alive)


def _check_line(
    path: str, log: str, entry: Entry, cipher_of: CipherOf, *, is_alive: bool
) -> Iterator[Finding]:
    cipher = cipher_of(log)
    if entry.sealed is not None and cipher is None:
        if not is_alive:
            reason = "a session died; whether its execution has a line can't be told without TASK_LOG_KEY"
            yield _finding("pending_unsettled", "unproven", path, reason)
        return
    try:
        entry = entry.opened(cipher)
    except BadLine as exc:
        yield _finding("pending_unreadable", "problem", path, exc.reason)
        return
    session_id = session_id_of(entry)
    if has_line(
        log, session_id, entry.seq, after_bytes=entry.log_bytes, inode=entry.log_inode, cipher=cipher
    ):
        return
    which = f"execution {session_id}:{entry.seq} of {entry.log_name}"
    if is_alive:
        yield _finding("pending_running", "note", path, f"{which} is running, or waits to be written")
    else:
        reason = f"{which} has no line: its session died; the next writer of the log gives it one"
        yield _finding("pending_unsettled", "unproven", path, reason)


def _finding(kind: FindingKind, level: Level, path: str, reason: str) -> Finding:
    return Finding(kind=kind, level=level, path=path, line=0, at=0, reason=reason)
