"""Reads task logs, lazily: bytes -> pieces between line feeds -> lines whose hash verifies -> records.

    piece, hash right, follows the line before   -> LogLine
    piece, hash right, does not follow           -> Damage("chain_break"), then the LogLine, which is whole
    an encrypted line                            -> decrypted: LogLine; if it is forged, Damage("unreadable")
    piece, hash wrong or none                    -> Damage("unreadable") in `recovered`
    last piece, no line feed, hash right         -> LogLine
    last piece, no line feed, hash wrong or none -> Damage("torn_tail"): being written, or its writer died

Nothing is skipped, nothing is written, and no more than one line is in memory.
"""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from types import TracebackType
from typing import IO, TYPE_CHECKING, Literal

import orjson

from task_logger.codec import FIRST_PREV, ChainLink, decode, read_link, stored_key_id
from task_logger.errors import BadLine, EncryptedLine, LogNotFound, LogUnreadable, UnsupportedSchema, WrongKey
from task_logger.log_source import (
    LOG_ENDINGS,
    existing_path,
    is_forward_only,
    open_source,
    plain_path,
    size_of,
)
from task_logger.quick_run import QuickRun, quick_run
from task_logger.record import ExecutionRecord, ExecutionRequest
from task_logger.tail import MAX_LINE_BYTES, pieces_backwards

if TYPE_CHECKING:
    from task_logger.encryption import Cipher
    from task_logger.keys import KeySource

DamageKind = Literal["unreadable", "torn_tail", "chain_break", "unsupported"]

_SKIP_BYTES = 1 << 20
_Bytes = bytes  # a field of `Damage` has that name
_END_BYTES = 256  # of a piece that is kept: where a line would have its chain fields


@dataclass(frozen=True, slots=True, kw_only=True)
class LogLine:
    """A line whose hash verifies: its offset in the file, its bytes without line feed, its chain fields.

    Of an encrypted line, `data` is the plain one; its chain fields are those of the encrypted line.
    """

    path: str
    at: int
    data: bytes
    link: ChainLink

    def record(self) -> ExecutionRecord:
        """Decode the line; raises `UnsupportedSchema`, `EncryptedLine` or `BadLine`."""
        return decode(self.data, self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """Something wrong in a log: where, how many bytes, and why, in words.

    A `chain_break` is about the order of whole lines and has no bytes of its own: it comes before the line at
    `at`, which doesn't follow the one before it. `end` are the last bytes of an unreadable piece.
    """

    kind: DamageKind
    path: str
    at: int
    bytes: int
    reason: str
    end: _Bytes = field(default=b"", repr=False, compare=False)


class LogReader:
    """Reads a log from its start to its present end, and again what was added since.

    `seen_bytes` is the size the file had when it was last read. A compressed log reads as the plain one,
    whose path finds it too. A `source` is read in the file's place, and closed. Close it, or use `with`.
    An encrypted log is decrypted: a `key` of `None` is that of TASK_LOG_KEY; without `decrypts` its lines
    come as stored.
    Opening raises `LogNotFound`, `LogUnreadable`, and `KeyRefused` where an encrypted log needs another key.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        start: int = 0,
        key: KeySource | None = None,
        decrypts: bool = True,
        source: IO[bytes] | None = None,
    ) -> None:
        self.path = path = os.fspath(path)
        self._file = open_source(path) if source is None else source
        self._key, self._decrypts = key, decrypts
        try:
            self._cipher = self._open_cipher() if decrypts and _has_header(path) else None
        except BaseException:
            self.close()
            raise
        self._at = start
        self.seen_bytes = start
        self._last: ChainLink | None = None
        self._is_at_line_end = True
        self._knows_last = start == 0

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; idempotent."""
        self._file.close()

    def size_bytes(self) -> int:
        """Return the present size of the file, of a compressed one that of what it holds."""
        return size_of(self._file)

    def stored_bytes(self) -> int:
        """Return how long the file is on the disk, compressed or not."""
        return os.fstat(self._file.fileno()).st_size

    def check_path(self) -> None:
        """Raise `LogUnreadable` where the path is no longer this file."""
        try:
            is_here = os.path.samestat(os.stat(existing_path(self.path)), os.fstat(self._file.fileno()))
        except OSError:
            is_here = False
        if not is_here:
            raise LogUnreadable(
                f"task log {self.path!r} was removed or replaced while it was read", path=self.path
            )

    def lines(self) -> Iterator[LogLine | Damage]:
        """Yield what comes up to the present end; a torn tail comes anew each time, until more follows it.

        Raises `LogUnreadable` where the system can't read on, or the file became shorter.
        """
        try:
            self._go_on()
            # To the end as it was: writers can be quicker than whoever reads.
            while self._at < self.seen_bytes and (piece := self._file.readline(MAX_LINE_BYTES + 1)):
                at, ends = self._at, piece.endswith(b"\n")
                if not ends and len(piece) > MAX_LINE_BYTES:
                    yield self._skip_overlong(at, len(piece))
                    continue
                link = read_link(piece[:-1] if ends else piece)
                if link is None and not ends:
                    reason = "it is being written, or its writer died"
                    yield self._damage("torn_tail", at, len(piece), reason, piece[-_END_BYTES:])
                    return
                self._at, self._is_at_line_end = at + len(piece), ends
                if link is None:
                    yield self._unreadable(at, piece[:-1])
                else:
                    yield from self._linked(at, piece[:-1] if ends else piece, link)
        except OSError as exc:
            raise LogUnreadable(
                f"task log {self.path!r} can't be read: {exc.strerror or exc}", path=self.path
            ) from exc

    def run(self, after: ChainLink, *, before_n: int, unless: Sequence[bytes]) -> QuickRun | None:
        """Take the next lines at once, as far as they follow `after` and are in memory: see `quick_run`.

        `None` where `lines` must go on, from here. Raises `LogUnreadable`.
        """
        peek = getattr(self._file, "peek", None)
        if peek is None or not self._is_at_line_end or self._at >= self.seen_bytes:
            return None
        try:
            found = quick_run(peek(), after, before_n=before_n, unless=unless)
            if found is not None:
                self._file.read(found.bytes)
                self._at += found.bytes
                self.seen_bytes = max(self.seen_bytes, self._at)
                self._last, self._knows_last = found.last, True
        except OSError as exc:
            raise _unreadable(self.path, exc) from exc
        return found

    def _go_on(self) -> None:
        size_bytes = self.seen_bytes = self.size_bytes()
        if size_bytes < self._at:
            raise LogUnreadable(
                f"task log {self.path!r} became shorter while it was read, which no writer of ours does",
                path=self.path,
            )
        if self._file.tell() != self._at:  # what can only be read forwards needn't go anywhere
            self._file.seek(self._at)
        if not self._is_at_line_end and size_bytes > self._at:
            # The line before was whole but for its line feed, which the next writer has put there.
            if self._file.read(1) == b"\n":
                self._at += 1
            self._file.seek(self._at)
            self._is_at_line_end = True

    def _linked(self, at: int, data: bytes, link: ChainLink) -> Iterator[LogLine | Damage]:
        reason = _why_it_does_not_follow(self._last, link) if self._knows_last else None
        self._last, self._knows_last = link, True
        if reason is not None:
            yield self._damage("chain_break", at, 0, reason)
        line = LogLine(path=self.path, at=at, data=data, link=link)
        if self._cipher is None and (not self._decrypts or stored_key_id(data) is None):
            yield line
        else:
            yield self._decrypted(line)

    def _decrypted(self, line: LogLine) -> LogLine | Damage:
        """The plain line, or why this is none that the key's owner wrote."""
        if stored_key_id(line.data) == "":
            return line  # encrypted in a way that this version doesn't know: `record` says so
        if self._cipher is None:
            self._cipher = self._open_cipher()
        try:
            return replace(line, data=self._cipher.open_line(line.data, line.link.n))
        except (BadLine, WrongKey) as exc:
            reason = exc.reason if isinstance(exc, BadLine) else "it names another data key than this log's"
            return self._damage("unreadable", line.at, len(line.data), reason)

    def _open_cipher(self) -> Cipher:
        from task_logger.encryption import cipher_to_read

        return cipher_to_read(self.path, self._key)

    def _unreadable(self, at: int, piece: bytes) -> Damage:
        if piece.startswith(b'{"enc"') and piece.endswith(b"}"):
            reason = str(EncryptedLine(self.path))
            return self._damage("unsupported", at, len(piece), reason, piece[-_END_BYTES:])
        reason = "it is not a whole line with a right hash"
        return self._damage("unreadable", at, len(piece), reason, piece[-_END_BYTES:])

    def _skip_overlong(self, at: int, count_bytes: int) -> Damage:
        ends = False
        while not ends and (more := self._file.readline(_SKIP_BYTES)):
            count_bytes += len(more)
            ends = more.endswith(b"\n")
        self._at, self._is_at_line_end = at + count_bytes, ends
        return self._damage("unreadable", at, count_bytes - ends, "it is longer than any line")

    def _damage(self, kind: DamageKind, at: int, count_bytes: int, reason: str, end: bytes = b"") -> Damage:
        return Damage(kind=kind, path=self.path, at=at, bytes=count_bytes, reason=reason, end=end)


def _has_header(path: str) -> bool:
    """Whether a log is encrypted; then a plain line in it is a forged one."""
    from task_logger.key_places import header_path

    return os.path.lexists(header_path(path))


def _why_it_does_not_follow(last: ChainLink | None, link: ChainLink) -> str | None:
    last_n, last_hash = (0, FIRST_PREV) if last is None else (last.n, last.hash)
    if link.n == last_n + 1 and link.prev == last_hash:
        return None
    if last is None:
        return (
            f"the first line is number {link.n}, not 1: lines before it are missing"
            if link.n != 1
            else ("the first line names a line before it")
        )
    if link == last:
        return f"line {link.n} is there again"
    if link.n != last_n + 1:
        return f"line {link.n} follows line {last_n}"
    return f"line {link.n} names another line before it than line {last_n} as it is here"


def read_lines(path: str | os.PathLike[str], key: KeySource | None = None) -> Iterator[LogLine | Damage]:
    """Yield the lines of a log and what is damaged between them, in order, to its present end.

    A key of `None` is that of TASK_LOG_KEY. Raises `LogNotFound`, `LogUnreadable` and `KeyRefused`.
    """
    with LogReader(path, key=key) as reader:
        yield from reader.lines()


def read_records(
    path: str | os.PathLike[str], key: KeySource | None = None
) -> Iterator[ExecutionRecord | Damage]:
    """Yield the records of a log and what is damaged between them, lines of another major version included.

    A key of `None` is that of TASK_LOG_KEY. Raises `LogNotFound`, `LogUnreadable` and `KeyRefused`.
    """
    for line in read_lines(path, key):
        yield record_of(line) if isinstance(line, LogLine) else line


def record_of(line: LogLine) -> ExecutionRecord | Damage:
    """Decode a line, or say why it can't be."""
    try:
        return line.record()
    except (UnsupportedSchema, EncryptedLine) as exc:
        kind: DamageKind = "unsupported"
        reason = str(exc)
    except BadLine as exc:
        kind, reason = "unreadable", exc.reason
    return Damage(kind=kind, path=line.path, at=line.at, bytes=len(line.data), reason=reason)


def last_lines(path: str | os.PathLike[str], count: int) -> Iterator[LogLine | Damage]:
    """Yield the last `count` lines of a log, oldest first, and what is damaged from the first of them on.

    Reads only the end of the file. Raises `LogNotFound` and `LogUnreadable`.
    """
    with LogReader(path, start=start_of_last(path, count)) as reader:
        yield from reader.lines()


def last_records(path: str | os.PathLike[str], count: int) -> Iterator[ExecutionRecord | Damage]:
    """Yield the last `count` records of a log, oldest first, as `last_lines` and `read_records` do."""
    for line in last_lines(path, count):
        yield record_of(line) if isinstance(line, LogLine) else line


def start_of_last(path: str | os.PathLike[str], count: int) -> int:
    """Return the offset of the first of a log's last `count` whole lines, for 0 of what comes after them.

    Raises `LogNotFound` and `LogUnreadable`.
    """
    path = os.fspath(path)
    with open_source(path) as file:
        size_bytes = size_of(file)
        try:
            if is_forward_only(file):
                return _start_of_last_forwards(path, file, count)
            for at, piece_bytes, data in pieces_backwards(file.fileno(), size_bytes):
                if count <= 0:
                    return size_bytes if at + piece_bytes < size_bytes else at
                count -= data is not None and read_link(data) is not None
                if count == 0:
                    return at
        except OSError as exc:
            raise _unreadable(path, exc) from exc
    return 0


def _start_of_last_forwards(path: str, file: IO[bytes], count: int) -> int:
    starts: deque[int] = deque(maxlen=min(max(count, 1), sys.maxsize))
    with LogReader(path, decrypts=False, source=file) as reader:
        for line in reader.lines():
            if isinstance(line, LogLine):
                starts.append(line.at)
        if count <= 0:
            return reader.size_bytes()
    return starts[0] if starts else 0


def started(line: LogLine) -> str:
    """Return the `timestamp` of a plain line; of one that has none, a text that is newer than any."""
    try:
        return str(orjson.loads(line.data)["timestamp"])
    except (ValueError, KeyError):
        return "~"  # forged: it is shown, and kept


def recovered_pieces(line: LogLine) -> list[tuple[int, int]]:
    """Return offset and length of the unreadable pieces that a line names."""
    if b'"recovered":[' not in line.data:
        return []
    try:
        pieces = orjson.loads(line.data)["recovered"]
        named = [(piece["at"], piece["bytes"]) for piece in pieces]
    except (ValueError, TypeError, KeyError):
        return []  # forged: it names nothing
    return named if all(isinstance(number, int) for piece in named for number in piece) else []


def pending_of(path: str) -> list[tuple[ExecutionRequest, bool]]:
    """Return the executions of a log that have no line yet, each with whether its session is alive."""
    from task_logger.settling import pending_requests

    folder, _, name = plain_path(path).rpartition("/")

    def open_cipher() -> Cipher:
        from task_logger.encryption import cipher_to_read

        return cipher_to_read(path)

    return list(pending_requests(folder or ".", name, open_cipher))


def find_logs(root: str) -> list[str]:
    """Return the paths of all logs below a root folder, sorted, compressed ones too.

    Where a log is there in both forms, the plain one counts. Raises `LogNotFound` and `LogUnreadable`.
    """
    logs: list[str] = []
    try:
        with os.scandir(root) as plans:
            folders = sorted(plan.path for plan in plans if plan.is_dir())
        for folder in folders:
            with os.scandir(folder) as entries:
                names = {entry.name for entry in entries if entry.name.endswith(LOG_ENDINGS)}
            logs += sorted(
                f"{folder}/{name}"
                for name in names
                if plain_path(name) == name or plain_path(name) not in names
            )
    except FileNotFoundError as exc:
        raise LogNotFound(root, f"there are no task logs: no folder {exc.filename or root!r}") from exc
    except OSError as exc:
        raise LogUnreadable(f"folder {exc.filename!r} can't be read: {exc.strerror}", path=root) from exc
    return logs


def _unreadable(path: str, exc: OSError) -> LogUnreadable:
    return LogUnreadable(f"task log {path!r} can't be read: {exc.strerror or exc}", path=path)
