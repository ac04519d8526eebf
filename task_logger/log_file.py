"""The locked, chained append: what makes one line of a task log.

    body of a line -> lock -> is the path still this file? -> did others write? (then the end is read)
                   -> numbered, (encrypted), chained, hashed -> one write -> (fdatasync) -> unlock
                   -> the log's new head

Nothing here ever truncates or rewrites a log. A line that was written in part stays as an unreadable piece,
and the next line, whoever writes it, names it in `recovered`.
"""

from __future__ import annotations

import os
from fcntl import LOCK_EX, LOCK_NB, LOCK_UN, flock

from task_logger.codec import FIRST_PREV, UnreadablePiece, seal
from task_logger.descriptors import CLOSED, LockDescriptor
from task_logger.errors import (
    LogClosed,
    LogLocked,
    LogMoved,
    LogSyncFailed,
    LogUnavailable,
    TaskLogError,
    UnsupportedFilesystem,
    log_error,
)
from task_logger.locking import LockWait, holder_pid
from task_logger.opening import open_log, sync_data
from task_logger.record import LogHead
from task_logger.tail import MAX_LINE_BYTES, LogTail, read_tail

TYPE_CHECKING = False  # `typing` costs start-up time
if TYPE_CHECKING:
    from task_logger.encryption import Cipher
    from task_logger.sealing import Sealer

LOCK_WAIT_S = 5.0
"""How long an append waits for others; a line takes them microseconds, so whoever needs longer is stopped."""

_YIELDS = (
    20  # asking again this often before sleeping: measured, 0.3 ms instead of 4 ms p99 with 8 busy writers
)

_UNKNOWN = -1  # the file's end isn't where we left it, or we don't know: its end must be read


class LogFile:
    """One open task log. The caller lets one thread in at a time; several of them may share a path."""

    def __init__(
        self,
        path: str,
        *,
        fsync: bool = False,
        lock_wait_s: float = LOCK_WAIT_S,
        sealer: Sealer | None = None,
        cipher: Cipher | None = None,
    ) -> None:
        """Open the log, create it where nothing is there, and read its end; a `sealer` seals each new line.

        With a `cipher` its lines are encrypted. Raises `LogPathRefused` where this can't be a log,
        `LogUnavailable` where it can't be had now, and `ConfigurationError` for an encrypted log without its
        cipher, or a plain one with any.
        """
        self.path = path
        self.cipher = cipher
        """What encrypts its lines, `None` for a plain log."""
        self.lock_wait_s = lock_wait_s
        self._fsync = fsync
        self._sealer = sealer
        self._sync_error: LogSyncFailed | None = None
        self._descriptor = open_log(path, fsync=fsync)
        self._lock_descriptor: LockDescriptor | None = None  # for waits; opened at the first one
        status = os.fstat(self._descriptor.number)
        self._device = status.st_dev
        self.inode = status.st_ino
        """The inode number of the file."""
        self._n, self._prev = 0, FIRST_PREV
        self._unreadable: tuple[UnreadablePiece, ...] = ()
        self._ends_in_lf = True
        self._size_bytes = _UNKNOWN
        self.known_bytes = 0
        """A size this log has had: no line written from now on starts before it."""
        try:
            self.refresh()
        except BaseException:
            self.close()
            raise

    @property
    def head(self) -> LogHead | None:
        """The last line as of our last look, `None` for a log without lines."""
        return LogHead(path=self.path, n=self._n, hash=self._prev) if self._n else None

    def append(self, body: bytes) -> LogHead:  # noqa: PLR0912  # each call costs; an interrupt may end it anywhere
        """Write one line: `body` is a JSON object without its closing brace, in one line.

        Returns the new head once the line is whole in the file, and on the disk with `fsync`. Raises
        `LogUnavailable` where it isn't: `LogLocked`, `LogMoved`, `LogDiskFull`, `LogSyncFailed`; the file
        may then have grown by an unreadable piece. Raises `LogClosed` after `close()` or in a forked child.
        """
        descriptor = self._descriptor.number
        try:
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
            except (OSError, ValueError) as exc:
                self._wait_for_lock(exc)
            status = os.lstat(self.path)
            if status.st_ino != self.inode or status.st_dev != self._device:
                raise LogMoved(self.path, "another file is there now")
            size_bytes = status.st_size
            if size_bytes != self._size_bytes:
                if self._sync_error is not None:  # (after it, the size is always unknown)
                    raise self._sync_error
                self._read_end(size_bytes)
            n = self._n + 1
            if self.cipher is not None:
                body = self.cipher.seal_body(body, n)
            line, digest = seal(body, n, self._prev, self._unreadable, self._sealer)
            if not self._ends_in_lf:
                line = b"\n" + line
            if len(line) > MAX_LINE_BYTES:
                raise LogUnavailable(
                    self.path, f"a line of {len(line)} bytes is longer than any reader takes"
                )
            self._size_bytes = _UNKNOWN  # whatever interrupts us from here on, the next append looks
            written_bytes = os.write(descriptor, line)
            if written_bytes != len(line):
                self._write_rest(line, written_bytes)
            if self._fsync:
                self._sync()
            self._n, self._prev, self._unreadable, self._ends_in_lf = n, digest, (), True
            self._size_bytes = self.known_bytes = size_bytes + len(line)
        except OSError as exc:
            raise self._named(exc, len(body)) from exc
        finally:
            # Not in a method: an interrupt may come at the start of any call of Python code, and skip it.
            try:
                if self._descriptor.number != CLOSED:
                    flock(self._descriptor.number, LOCK_UN)
            finally:
                if self._lock_descriptor is not None:
                    flock(self._lock_descriptor.number, LOCK_UN)
        return LogHead(path=self.path, n=n, hash=digest)

    def check(self) -> None:
        """Make sure that the path is still this file and can be written; writes nothing and waits for nobody.

        Raises `LogMoved`, `LogUnavailable`, or `LogClosed`.
        """
        if self._descriptor.number == CLOSED:
            raise LogClosed(self.path)
        if self._sync_error is not None:
            raise self._sync_error
        try:
            status = os.lstat(self.path)
        except OSError as exc:
            raise self._named(exc, 0) from exc
        if status.st_ino != self.inode or status.st_dev != self._device:
            raise LogMoved(self.path, "another file is there now")
        if not status.st_mode & 0o200:
            raise LogUnavailable(self.path, "its mode was changed so that nobody may write it")

    def refresh(self) -> None:
        """Look where the log ends now, under its lock; raises as `append` does."""
        descriptor = self._descriptor.number
        try:
            try:
                flock(descriptor, LOCK_EX | LOCK_NB)
            except (OSError, ValueError) as exc:
                self._wait_for_lock(exc)
            self._read_end(os.fstat(descriptor).st_size)
        except OSError as exc:
            raise self._named(exc, 0) from exc
        finally:
            try:
                if self._descriptor.number != CLOSED:
                    flock(self._descriptor.number, LOCK_UN)
            finally:
                if self._lock_descriptor is not None:
                    flock(self._lock_descriptor.number, LOCK_UN)

    def close(self) -> None:
        """Close the log; idempotent."""
        self._descriptor.close()
        if self._lock_descriptor is not None:
            self._lock_descriptor.close()

    def _read_end(self, size_bytes: int) -> None:
        tail = read_tail(self._descriptor.number, size_bytes, self.path)
        if self.cipher is not None or tail.link is None or tail.key_id is not None:
            self._check_kind(tail)
        self._n, self._prev = (tail.link.n, tail.link.hash) if tail.link else (0, FIRST_PREV)
        self._unreadable, self._ends_in_lf = tail.unreadable, tail.ends_in_lf
        self._size_bytes = self.known_bytes = size_bytes

    def _check_kind(self, tail: LogTail) -> None:
        """A log is encrypted as a whole or not at all: whoever writes its first line decides."""
        from task_logger.kinds import check_kind

        check_kind(self.path, None if self.cipher is None else self.cipher.key_id, tail)

    def _write_rest(self, line: bytes, written_bytes: int) -> None:
        """Go on after a short write: a signal, or a disk that is nearly full."""
        try:
            while written_bytes < len(line):
                written_bytes += os.write(self._descriptor.number, line[written_bytes:])
        except OSError as exc:
            raise log_error(self.path, exc, line_bytes=len(line), written_bytes=written_bytes) from exc

    def _sync(self) -> None:
        try:
            sync_data(self._descriptor.number)
        except OSError as exc:
            # The kernel has marked the pages clean: a second sync would succeed, and mean nothing.
            self._sync_error = LogSyncFailed(self.path, exc.strerror or str(exc))
            raise self._sync_error from exc

    def _named(self, exc: OSError, body_bytes: int) -> TaskLogError:
        if isinstance(exc, FileNotFoundError):
            return LogMoved(self.path, "it is gone")
        return log_error(self.path, exc, line_bytes=body_bytes)

    def _wait_for_lock(self, refused: OSError | ValueError) -> None:
        """Wait after a first try was refused; then the lock is held on one of our two descriptors."""
        descriptor = self._descriptor
        if descriptor.number == CLOSED:
            raise LogClosed(self.path) from None
        if not isinstance(refused, BlockingIOError):
            self.close()  # unlocking would fail too; closing lets go for certain
            raise UnsupportedFilesystem(self.path) from refused
        for _ in range(_YIELDS):
            os.sched_yield()
            if descriptor.try_lock():
                return
        if self._lock_descriptor is None:
            self._lock_descriptor = self._open_again()
        waiting, self._lock_descriptor = self._lock_descriptor, None
        if not LockWait(waiting).wait(self.lock_wait_s):
            raise LogLocked(
                self.path, waited_s=self.lock_wait_s, holder_pid=holder_pid(os.fstat(descriptor.number))
            )
        self._lock_descriptor = waiting

    def _open_again(self) -> LockDescriptor:
        again = open_log(self.path, fsync=False)
        status = os.fstat(again.number)
        if (status.st_dev, status.st_ino) != (self._device, self.inode):
            again.close()
            raise LogMoved(self.path, "another file is there now")
        return again
