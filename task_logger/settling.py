"""Settling: every execution of a dead session gets its one line.

    pending files of a plan -> those of dead sessions, locked -> is the line in the log, behind the size that
    the entry names? -> if not: the kept line, or one saying `unknown`, is appended -> the file is removed

No execution is settled twice: only the holder of a pending file's lock settles it, the session that owned it
writes no more, and whoever settled it and died before removing it left the line in the log, to be found.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Container, Iterable
from typing import TYPE_CHECKING

import orjson

from task_logger import artifacts
from task_logger.abandoned import look_at, pending_names, take_abandoned
from task_logger.codec import encode, read_link, stored_key_id
from task_logger.errors import BadLine, LogUnavailable, TaskLogError, log_error, read_error
from task_logger.log_file import LogFile
from task_logger.pending import Entry
from task_logger.record import ExecutionOutcome, ExecutionRequest
from task_logger.tail import MAX_LINE_BYTES

if TYPE_CHECKING:
    from task_logger.encryption import Cipher

_SCAN_BYTES = 1 << 20


def settle(plan_folder: str, log: LogFile, *, own: Container[str] = (), fsync: bool = False) -> list[str]:
    """Give every execution of the log's dead sessions its line; `own` are names of files to leave alone.

    Returns notices in words, of what was settled and what could not be. Raises `LogUnavailable` where the log
    can't be written; what is not settled then is left for the next writer.
    """
    folder = f"{plan_folder}/pending"
    notices: list[str] = []
    try:
        names = pending_names(folder)
    except OSError as exc:
        return [f"the pending files in {folder} can't be looked at: {exc.strerror}; they stay"]
    for name in names:
        if name not in own:
            try:
                notices += _settle_file(plan_folder, log, f"{folder}/{name}", fsync=fsync)
            except LogUnavailable:
                raise
            except (OSError, TaskLogError) as exc:
                notices.append(f"the pending file {folder}/{name} can't be settled now: {exc}; it stays")
    return notices


def _settle_file(plan_folder: str, log: LogFile, path: str, *, fsync: bool) -> list[str]:
    abandoned = take_abandoned(path)
    if abandoned is None:
        return []
    try:
        if abandoned.entries is None:
            aside = abandoned.put_aside()
            return [f"a pending file of a session that died makes no sense; it is kept as {aside}"]
        log_name = os.path.basename(log.path)  # pathlib costs start-up time
        if any(entry.log_name != log_name for entry in abandoned.entries):
            return []  # the next writer of that log does it
        entries = [entry.opened(log.cipher) for entry in abandoned.entries]
        notices = append_missing(plan_folder, log, entries, fsync=fsync)
        abandoned.remove()
        return notices
    finally:
        abandoned.close()


def append_missing(plan_folder: str, log: LogFile, entries: Iterable[Entry], *, fsync: bool) -> list[str]:
    """Append the line of each execution that has none; returns a notice for each. Raises `LogUnavailable`."""
    notices = []
    for entry in _one_per_execution(entries):
        session_id = session_id_of(entry)
        if _has_line(log.path, entry, log.cipher):
            continue
        if entry.body is not None:
            log.append(entry.body)
            notices.append(
                f"execution {session_id}:{entry.seq} got the line that could not be written before"
            )
        elif entry.request is not None:
            log.append(_unknown_line(plan_folder, entry, entry.request, log.cipher, fsync=fsync))
            notices.append(f"the session of execution {session_id}:{entry.seq} died; its line says `unknown`")
    return notices


def _one_per_execution(entries: Iterable[Entry]) -> list[Entry]:
    """What is kept replaces its request."""
    latest: dict[tuple[str, int], Entry] = {}
    for entry in entries:
        latest[session_id_of(entry), entry.seq] = entry
    return list(latest.values())


def session_id_of(entry: Entry) -> str:
    """Return the session that an entry is of."""
    if entry.request is not None:
        return entry.request.session_id
    session_id = orjson.loads((entry.body or b"{") + b"}")["session_id"]
    return str(session_id)


def _unknown_line(
    plan_folder: str, entry: Entry, request: ExecutionRequest, cipher: Cipher | None, *, fsync: bool
) -> bytes:
    outcome = ExecutionOutcome(status="unknown", route=entry.route, isolation=entry.isolation, elapsed_ms=0)
    encoded = encode(request, outcome, max_body_bytes=None if cipher is None else cipher.max_body_bytes)
    for artifact in encoded.outcome.artifacts:
        if artifact.content is not None:
            artifacts.put(
                plan_folder, artifact, fsync=fsync, cipher=None if cipher is None else cipher.artifacts
            )
    return encoded.body


def has_line(
    log_path: str, session_id: str, seq: int, *, after_bytes: int, inode: int, cipher: Cipher | None = None
) -> bool:
    """Whether a log has the line of an execution behind `after_bytes`; `cipher` is the log's.

    All of the log is searched where it is another file than `inode`, or shorter now. Raises `LogUnavailable`
    where it can't be read; a log that isn't there has no line.
    """
    try:
        descriptor = os.open(log_path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise log_error(log_path, exc) from exc
    try:
        status = os.fstat(descriptor)
        if status.st_ino != inode or status.st_size < after_bytes:
            after_bytes = 0
        return _find(descriptor, (session_id.encode(), seq), after_bytes, status.st_size, cipher)
    except OSError as exc:
        raise LogUnavailable(log_path, exc.strerror or str(exc)) from exc
    finally:
        os.close(descriptor)


def _find(descriptor: int, execution: tuple[bytes, int], at: int, end: int, cipher: Cipher | None) -> bool:
    session_id, seq = execution
    needle = b'"session_id":"%b"' % session_id
    begun = b""  # of the line that the last piece read ended in
    while at < end:
        data = os.pread(descriptor, min(_SCAN_BYTES, end - at), at)
        if not data:
            break
        at += len(data)
        whole, line_end, rest = data.rpartition(b"\n")
        if not line_end:
            begun += data
            if len(begun) > MAX_LINE_BYTES + 1:
                begun = begun[:1]  # no line: only its end is still looked for
            continue
        whole = begun + whole
        begun = rest
        may_be_there = cipher is not None or needle in whole
        if may_be_there and any(_is_line_of(line, needle, seq, cipher) for line in whole.split(b"\n")):
            return True
    return _is_line_of(begun, needle, seq, cipher)


def _is_line_of(line: bytes, needle: bytes, seq: int, cipher: Cipher | None) -> bool:
    is_sealed = cipher is not None and stored_key_id(line) == cipher.key_id
    if not (is_sealed or needle in line) or (link := read_link(line)) is None:
        return False
    if is_sealed:
        assert cipher is not None
        try:
            line = cipher.open_line(line, link.n)
        except BadLine:
            return False  # forged: whoever reads the log is told
    if needle not in line:
        return False
    try:
        fields = orjson.loads(line)
    except ValueError:
        return False  # forged as well
    return bool(fields.get("session_id") == needle[14:-1].decode() and fields.get("seq") == seq)


def pending_requests(
    plan_folder: str, log_name: str, open_cipher: Callable[[], Cipher] | None = None
) -> list[tuple[ExecutionRequest, bool]]:
    """Return the requests without a line in their log, and whether their session is alive; writes nothing.

    `open_cipher` opens the log's cipher, should it be needed. Raises `TaskLogError` where a pending file or
    the log can't be read.
    """
    folder = f"{plan_folder}/pending"
    cipher: Cipher | None = None
    found: list[tuple[ExecutionRequest, bool]] = []
    try:
        names = pending_names(folder)
    except OSError as exc:
        raise read_error(folder, exc) from exc
    for name in names:
        try:
            entries, alive = look_at(f"{folder}/{name}")
        except FileNotFoundError:
            continue  # settled meanwhile
        except OSError as exc:
            raise read_error(f"{folder}/{name}", exc) from exc
        for entry in entries:
            if entry.log_name != log_name:
                continue
            if entry.sealed is not None and cipher is None and open_cipher is not None:
                cipher = open_cipher()
            opened = entry.opened(cipher)
            if opened.request is not None and not _has_line(f"{plan_folder}/{log_name}", opened, cipher):
                found.append((opened.request, alive))
    return found


def _has_line(log_path: str, entry: Entry, cipher: Cipher | None) -> bool:
    return has_line(
        log_path,
        session_id_of(entry),
        entry.seq,
        after_bytes=entry.log_bytes,
        inode=entry.log_inode,
        cipher=cipher,
    )
