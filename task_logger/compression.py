"""Compressed logs: a finished log is kept as <log>.zst, and comes back as it was when its task goes on.

    compress: the log --> zstd --> temporary file, synced, read back and compared
              under the locks: nobody wrote meanwhile --> it gets its name, then the plain one is removed
    restore:  <log>.zst --> temporary file, synced, compared with the checksum in it
              under the lock: still the same --> it gets the log's name, then the compressed one is removed

Not a byte of a log changes, so its chain goes on. Whoever dies in between leaves both: then the plain one
counts, which holds at least what the other does. The lock of the plan's folder makes these moments, and the
creation of a log, exclude each other: a second log can't begin where a compressed one is.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from typing import IO, Any

from task_logger.abandoned import content_at, pending_names
from task_logger.codec import read_link
from task_logger.compressed_file import open_compressed
from task_logger.descriptors import LockDescriptor
from task_logger.errors import LogInUse, LogNotFound, LogUnreadable, log_error
from task_logger.folder_lock import folder_lock
from task_logger.key_places import is_event_log
from task_logger.log_source import COMPRESSED_SUFFIX, is_compressed
from task_logger.opening import sync_folder
from task_logger.pending import log_name_in
from task_logger.record import LogHead
from task_logger.tail import pieces_backwards

_LEVEL = 10
"""Measured on a log of parts of Python sources: 9.0 times smaller; with 3 it is 6.0 times; 12 takes twice the
time for 9.1, and 15 ten times for 9.8."""

_COPY_BYTES = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """A log that was compressed: its path now, and how long it was and is, in bytes."""

    path: str
    plain_bytes: int
    compressed_bytes: int


def compress_log(path: str) -> Compressed:
    """Replace a finished log by its compressed form.

    Raises `LogInUse` where a session has it, or left something for it to settle, and where it grew meanwhile;
    `LogNotFound`, `LogUnreadable` for what is no plain log, and `LogUnavailable`. The log is untouched then.
    """
    path = os.path.abspath(path)
    is_there = os.path.lexists(path)
    if is_compressed(path) or (not is_there and os.path.lexists(path + COMPRESSED_SUFFIX)):
        raise _not_compressed(path, "it is compressed already")
    if not path.endswith(".jsonl"):
        raise _not_compressed(path, "it is no log <n>.<name>.jsonl")
    if is_event_log(path):  # no pending file says who has it open, and a writer would begin it anew
        raise _not_compressed(path, "it is a log of events")
    if not is_there:
        raise LogNotFound(path)
    _require_finished(path)
    temporary = _temporary(path)
    log = _open(path)
    try:
        size_bytes = os.fstat(log.number).st_size
        digest = _write_compressed(log.number, size_bytes, temporary)
        if _digest_of_compressed(temporary) != digest:
            raise LogUnreadable(
                f"what was compressed of {path!r} reads differently; it is removed", path=path
            )
        compressed_bytes = os.stat(temporary).st_size
        _put_compressed(path, log, size_bytes, temporary)
    except OSError as exc:
        raise log_error(path, exc) from exc
    finally:
        log.close()
        _remove(temporary)
    return Compressed(
        path=path + COMPRESSED_SUFFIX, plain_bytes=size_bytes, compressed_bytes=compressed_bytes
    )


def restore_log(path: str, *, fsync: bool) -> None:
    """Bring a compressed log back to its plain path, unless another process does or it is there again.

    Raises `LogUnavailable`, also where the compressed one is damaged; nothing changed then.
    """
    temporary = _temporary(path)
    compressed = path + COMPRESSED_SUFFIX
    try:
        descriptor = os.open(compressed, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return
    except OSError as exc:
        raise log_error(compressed, exc) from exc
    with os.fdopen(descriptor, "rb", buffering=0) as source:
        try:
            _write_plain(source, temporary)
            with folder_lock(os.path.dirname(path)):
                is_same = os.path.samestat(os.fstat(source.fileno()), os.lstat(compressed))
                if is_same and not os.path.lexists(path):
                    os.link(temporary, path)
                    sync_folder(os.path.dirname(path))
                    os.unlink(compressed)
                    if fsync:
                        sync_folder(os.path.dirname(path))
        except FileNotFoundError:
            return  # another process did it, or took the folder away: whoever opens the log sees
        except OSError as exc:
            raise log_error(compressed, exc) from exc
        finally:
            _remove(temporary)


def is_brought_back(path: str, head: LogHead | None, *, fsync: bool) -> bool:
    """Whether a log that was compressed under its writer is there, with the line `head` that it ended in.

    Brings it back where it is compressed. Raises as `restore_log`.
    """
    descriptor = None
    while descriptor is None:
        if not os.path.lexists(path):
            restore_log(path, fsync=fsync)
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            # One of the two is always there: compressed again meanwhile, or brought back since.
            if not os.path.lexists(path + COMPRESSED_SUFFIX) and not os.path.lexists(path):
                return False
        except OSError:
            return False
    try:
        for _, _, content in pieces_backwards(descriptor, os.fstat(descriptor).st_size):
            link = None if content is None else read_link(content)
            if link is not None and (head is None or link.n <= head.n):
                return head is None or (link.n, link.hash) == (head.n, head.hash)
    except OSError as exc:
        raise log_error(path, exc) from exc
    finally:
        os.close(descriptor)
    return head is None


def _require_finished(path: str) -> None:
    """Refuse a log that a session has, or that one left something for. Raises `LogInUse` and `OSError`."""
    folder, name = os.path.split(path)
    try:
        for pending in pending_names(f"{folder}/pending"):
            try:
                content, is_alive = content_at(f"{folder}/pending/{pending}")
            except FileNotFoundError:
                continue
            if log_name_in(content) in (name, None):
                what = (
                    "a session has it open" if is_alive else "a session that died left an execution to settle"
                )
                raise LogInUse(path, f"{what} ({folder}/pending/{pending})")
    except OSError as exc:
        raise log_error(path, exc) from exc


def _open(path: str) -> LockDescriptor:
    try:
        log = LockDescriptor(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK))
    except OSError as exc:
        raise log_error(path, exc) from exc
    if not stat.S_ISREG(os.fstat(log.number).st_mode):
        log.close()
        raise _not_compressed(path, "it is no regular file")
    return log


def _not_compressed(path: str, reason: str) -> LogUnreadable:
    return LogUnreadable(f"{path!r} can't be compressed: {reason}", path=path)


def _temporary(path: str) -> str:
    return f"{os.path.dirname(path)}/.{os.urandom(8).hex()}.tmp"


def _remove(temporary: str) -> None:
    try:
        os.unlink(temporary)
    except FileNotFoundError:
        pass


def _write_compressed(descriptor: int, size_bytes: int, temporary: str) -> bytes:
    """Compress the first bytes of a file into a new one, synced; returns the SHA-256 of the plain ones."""
    import zstandard

    digest = hashlib.sha256()
    compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
    with _new_file(temporary) as out:
        # Not in `with`: ended too early, by Ctrl-C or a full disk, it would raise an error of its own.
        writer: Any = compressor.stream_writer(out, size=size_bytes, closefd=False)
        at = 0
        while at < size_bytes:
            piece = os.pread(descriptor, min(_COPY_BYTES, size_bytes - at), at)
            if not piece:
                raise OSError(errno.EIO, "it became shorter while it was read")
            digest.update(piece)
            writer.write(piece)
            at += len(piece)
        writer.close()
        os.fsync(out.fileno())
    return digest.digest()


def _digest_of_compressed(path: str) -> bytes:
    digest = hashlib.sha256()
    with open_compressed(open(path, "rb", buffering=0)) as file:
        while piece := file.read(_COPY_BYTES):
            digest.update(piece)
    return digest.digest()


def _write_plain(source: IO[bytes], temporary: str) -> None:
    with (
        _new_file(temporary) as out,
        open_compressed(os.fdopen(os.dup(source.fileno()), "rb", buffering=0)) as file,
    ):
        while piece := file.read(_COPY_BYTES):
            out.write(piece)
        out.flush()
        os.fsync(out.fileno())


def _new_file(path: str) -> IO[bytes]:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(descriptor, 0o600)  # whatever the umask was
    return os.fdopen(descriptor, "wb")


def _put_compressed(path: str, log: LockDescriptor, size_bytes: int, temporary: str) -> None:
    """Let the compressed file take the log's place, unless the log is no longer what was compressed."""
    folder = os.path.dirname(path)
    status = os.fstat(log.number)
    os.utime(temporary, ns=(status.st_atime_ns, status.st_mtime_ns))
    with folder_lock(folder):
        if not log.try_lock():  # an append goes on; it is held until the log is closed here
            raise LogInUse(path, "it is being written")
        if not log.is_file_at(path) or os.fstat(log.number).st_size != size_bytes:
            raise LogInUse(path, "it was written to, or replaced, while it was compressed")
        _require_finished(path)
        os.rename(temporary, path + COMPRESSED_SUFFIX)
        sync_folder(folder)
        os.unlink(path)
        sync_folder(folder)
