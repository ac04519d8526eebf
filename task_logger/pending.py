"""A session's pending file: what runs now, and what could not be written yet.

    open:   the log's name -------------> header, which stays
    begin:  request --------------------> entry behind the header, over the one before
    keep:   body of an unwritten line --> entry behind its request; from then on nothing is overwritten,
            later requests go behind it, until all that is kept is in the log: then the file starts anew

Header and entries are `<crc32, 8 hex digits> <JSON>` and LF. The checksum goes on from that of the one
before, so neither a torn entry nor an older, longer one's rest can be taken for an entry. Behind a whole
header, a torn entry is a request that did not run yet, or a line that could not be kept but whose request is
there. Of an encrypted log, what an entry says of its execution is encrypted too.

The file is never cleared when its execution is in the log: whoever reads it looks there, behind the size that
the entry names.

The session holds the file's lock for its life. Whoever gets the lock knows that the session is dead, that it
will write no more, and that nobody else is settling the file.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from zlib import crc32

import orjson

from task_logger.codec import decode_request
from task_logger.descriptors import CLOSED, LockDescriptor
from task_logger.errors import KeyMissing, LogClosed, LogPathRefused, LogSyncFailed, log_error
from task_logger.opening import sync_data, sync_folder
from task_logger.record import ExecutionRequest, Isolation, Route
from task_logger.tail import read_exactly

if TYPE_CHECKING:
    from task_logger.encryption import Cipher

SAFE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
"""Nothing is followed, nothing blocks."""


_REQUEST, _BODY, _SEALED = b',"request":', b',"body":', b',"sealed":'


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One entry of a pending file: a request, or the kept body of its line.

    `log_name` is the log's file name; the line can only be behind `log_bytes` of the file `log_inode`.
    Exactly one of `request`, `body` and `sealed` is not `None`; the last is one of the others, encrypted.
    """

    log_name: str
    log_inode: int
    log_bytes: int
    route: Route
    isolation: Isolation
    seq: int
    request: ExecutionRequest | None
    body: bytes | None
    sealed: bytes | None = None

    def opened(self, cipher: Cipher | None) -> Entry:
        """Return the entry decrypted; raises `BadLine`, and `KeyMissing` where that needs a cipher."""
        if self.sealed is None:
            return self
        if cipher is None:
            raise KeyMissing(
                "TASK_LOG_KEY", f"a pending entry of {self.log_name!r} is encrypted; set it to its key"
            )
        request, body = _request_or_body(cipher.open_entry(self.sealed, self.seq))
        return replace(self, request=request, body=body, sealed=None)


class PendingFile:
    """The pending file of one session that writes to one log."""

    def __init__(
        self,
        folder: str,
        session_id: str,
        log_name: str,
        *,
        route: Route,
        isolation: Isolation,
        fsync: bool,
        cipher: Cipher | None = None,
    ) -> None:
        """Create and lock the file; `cipher` is the log's.

        A second log of the same session and plan gets a second file. Raises `LogPathRefused` for a session id
        that is no file name, and `LogUnavailable`.
        """
        if not session_id.replace("-", "").isalnum() or not session_id.isascii() or len(session_id) > 100:
            raise LogPathRefused(
                f"{folder}/{session_id}", "a session id consists of ASCII letters, digits and '-'"
            )
        self._fsync = fsync
        self._cipher = cipher
        header = orjson.dumps({"log": log_name, "route": route, "isolation": isolation})
        self._first_seed = crc32(header)
        header = b"%08x %b\n" % (self._first_seed, header)
        self._first_at = len(header)
        try:
            self.path, self._descriptor = _create(folder, session_id)
            self._write(header, 0)
            if fsync:
                os.fsync(self._descriptor.number)
                sync_folder(folder)
        except OSError as exc:
            if hasattr(self, "path"):
                self.close(remove=True)
            raise log_error(f"{folder}/{session_id}", exc) from exc
        self._at, self._seed = self._first_at, self._first_seed  # where the next request goes, what's before
        self._end, self._last = self._at, self._seed  # the same behind the last entry

    @property
    def name(self) -> str:
        """The file's name in its folder."""
        return self.path.rpartition("/")[2]

    def begin(self, encoded_request: bytes, seq: int, *, log_inode: int, log_bytes: int) -> None:
        """Put down what is about to run; with `fsync` it is on the disk then. Raises `LogUnavailable`."""
        rest = b',"request":%b}' % encoded_request
        if self._cipher is not None:
            rest = b',"sealed":"%b"}' % self._cipher.seal_entry(rest, seq)
        payload = b'{"inode":%d,"bytes":%d,"seq":%d%b' % (log_inode, log_bytes, seq, rest)
        crc = crc32(payload, self._seed)
        entry = b"%08x %b\n" % (crc, payload)
        try:
            if os.pwrite(self._descriptor.number, entry, self._at) != len(entry):
                self._write(entry, self._at)  # all of it once more, to learn why
        except OSError as exc:
            self._end, self._last = self._at, self._seed  # whatever was there may be half overwritten
            raise self._named(exc, len(entry)) from exc
        self._end, self._last = self._at + len(entry), crc
        if self._fsync:
            self._sync()

    def hold(self) -> None:
        """Overwrite nothing of what is in the file now, until `reset`."""
        self._at, self._seed = self._end, self._last

    def keep(self, body: bytes, seq: int, *, log_inode: int, log_bytes: int) -> None:
        """Keep the body of a line that could not be written.

        Raises `LogUnavailable`; what was in the file is still there then.
        """
        self.hold()
        rest = b',"body":%b}}' % body
        if self._cipher is not None:
            rest = b',"sealed":"%b"}' % self._cipher.seal_entry(rest, seq)
        payload = b'{"inode":%d,"bytes":%d,"seq":%d%b' % (log_inode, log_bytes, seq, rest)
        crc = crc32(payload, self._seed)
        entry = b"%08x %b\n" % (crc, payload)
        try:
            self._write(entry, self._at)
        except OSError as exc:
            raise self._named(exc, len(entry)) from exc
        self._end, self._last = self._at + len(entry), crc
        self.hold()
        if self._fsync:
            self._sync()

    def entries(self) -> list[Entry]:
        """Read back what is in the file; raises `LogUnavailable`."""
        try:
            found = entries_in(content_of(self._descriptor.number)) or []
        except OSError as exc:
            raise self._named(exc, 0) from exc
        return [entry.opened(self._cipher) for entry in found]

    def reset(self) -> None:
        """Start anew: all that was kept is in the log. Raises `LogUnavailable`."""
        try:
            os.ftruncate(self._descriptor.number, self._first_at)
        except OSError as exc:
            raise self._named(exc, 0) from exc
        self._at, self._seed = self._end, self._last = self._first_at, self._first_seed

    def close(self, *, remove: bool) -> None:
        """Let go of the file; without `remove` the next writer of its log settles it. Idempotent."""
        if remove and self._descriptor.number != CLOSED:
            try:
                if self._descriptor.is_file_at(self.path):
                    os.unlink(self.path)
            except OSError:
                pass  # the next writer finds its executions in the log, and removes it
        self._descriptor.close()

    def _write(self, entry: bytes, at: int) -> None:
        rest = entry
        while rest:
            written_bytes = os.pwrite(self._descriptor.number, rest, at)
            rest, at = rest[written_bytes:], at + written_bytes

    def _sync(self) -> None:
        try:
            sync_data(self._descriptor.number)
        except OSError as exc:
            raise LogSyncFailed(self.path, exc.strerror or str(exc)) from exc

    def _named(self, exc: OSError, entry_bytes: int) -> Exception:
        if self._descriptor.number == CLOSED:
            return LogClosed(self.path)
        return log_error(self.path, exc, line_bytes=entry_bytes)


def _create(folder: str, session_id: str) -> tuple[str, LockDescriptor]:
    for number in range(1, 1000):
        path = f"{folder}/{session_id}" if number == 1 else f"{folder}/{session_id}.{number}"
        try:
            flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | SAFE_FLAGS
            descriptor = LockDescriptor(os.open(path, flags, 0o600))
        except FileExistsError:
            continue
        if stat.S_IMODE(os.fstat(descriptor.number).st_mode) != 0o600:
            os.fchmod(descriptor.number, 0o600)
        # Someone who settles may have been quicker: an empty file without owner is removed.
        if descriptor.try_lock() and descriptor.is_file_at(path):
            return path, descriptor
        descriptor.close()
    raise LogPathRefused(f"{folder}/{session_id}", "its session id is in use by a thousand logs")


def content_of(descriptor: int) -> bytes:
    """Read all of a pending file. Raises `OSError`."""
    size_bytes = os.fstat(descriptor).st_size
    return read_exactly(descriptor, size_bytes, 0) if size_bytes else b""


def entries_in(content: bytes) -> list[Entry] | None:
    """Read the entries in a pending file's content, up to the first torn one.

    `None` where not even its header makes sense; a file that is still empty has no entries. Raises `BadLine`
    for an entry of another version.
    """
    if not content:
        return []
    payloads = _payloads(content)
    header = next(payloads, None)
    if header is None:
        return None
    common = orjson.loads(header)
    return [_entry(payload, common) for payload in payloads]


def log_name_in(content: bytes) -> str | None:
    """Return the file name of the log that a pending file is of, `None` where not even that can be read."""
    try:
        return str(orjson.loads(content[9 : content.index(b"\n")])["log"])
    except (ValueError, KeyError, TypeError):
        return None


def _payloads(content: bytes) -> Iterator[bytes]:
    at, seed = 0, 0
    while (end := content.find(b"\n", at)) >= 0:
        payload = content[at + 9 : end]
        seed = crc32(payload, seed)
        if content[at : at + 9] != b"%08x " % seed:
            return
        yield payload
        at = end + 1


def _entry(payload: bytes, common: dict[str, Any]) -> Entry:
    at = _start_of_rest(payload)
    fields = orjson.loads(payload[:at] + b"}")
    rest = payload[at:]
    request, body, sealed = None, None, None
    if rest.startswith(_SEALED):
        sealed = rest[len(_SEALED) + 1 : -2]
    else:
        request, body = _request_or_body(rest)
    return Entry(
        log_name=common["log"],
        log_inode=fields["inode"],
        log_bytes=fields["bytes"],
        route=common["route"],
        isolation=common["isolation"],
        seq=fields["seq"],
        request=request,
        body=body,
        sealed=sealed,
    )


def _start_of_rest(payload: bytes) -> int:
    """Where the request, body or what is encrypted begins: the first of them; it may contain the others."""
    return min(at for kind in (_REQUEST, _BODY, _SEALED) if (at := payload.find(kind)) >= 0)


def _request_or_body(rest: bytes) -> tuple[ExecutionRequest | None, bytes | None]:
    if rest.startswith(_REQUEST):
        return decode_request(rest[len(_REQUEST) : -1]), None
    return None, rest[len(_BODY) : -2]
